"""A client that connects, and no more: the handshake of the NBD protocol, up to transmission."""

import socket
import struct

NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
FIXED_NEWSTYLE_NO_ZEROES = 3
OPT_GO = 7
REP_ACK = 1
REP_INFO = 3
REP_ERRORS = 1 << 31
CMD_DISC = 2
REQUEST_MAGIC = 0x25609513


class RefusedError(Exception):
    """The server does not want us."""


class Client:
    """A connection to an export, ready for requests."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        magic, option_magic, _ = struct.unpack(">QQH", self.receive(18))
        if (magic, option_magic) != (NBD_MAGIC, OPTION_MAGIC):
            raise RefusedError(f"{path}: not a server of today's NBD")
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES)
                            + struct.pack(">QII", OPTION_MAGIC, OPT_GO, len(body)) + body)
        reply = REP_INFO
        while reply != REP_ACK:
            magic, _, reply, length = struct.unpack(">QIII", self.receive(20))
            told = self.receive(length)
            if magic != REPLY_MAGIC or reply & REP_ERRORS:
                raise RefusedError(f"{path}: export {export}: {told.decode(errors='replace')}")

    def receive(self, length):
        """So many bytes."""
        received = b""
        while len(received) < length:
            part = self.socket.recv(length - len(received))
            if not part:
                raise RefusedError("the server has ended the connection; its log says why")
            received += part
        return received

    def close(self):
        """Takes leave."""
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))
        self.socket.close()
