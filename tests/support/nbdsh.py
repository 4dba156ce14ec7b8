# A session of libnbd with an export: run by nbdsh, which connects `h` to it.
#
# With a libnbd that knows extended headers (1.18 and later) ranges go beyond 4 GiB. The export is
# of at least 16 GiB, thin, and holds nothing that is needed.

import errno

GIB = 1 << 30
size = h.get_size()
extended = bool(getattr(h, "get_extended_headers_negotiated", lambda: False)())
print("libnbd", h.get_version(), "with extended headers" if extended else "")

assert size >= 16 * GIB
assert h.get_structured_replies_negotiated()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
for can in [h.can_cache, h.can_df, h.can_fast_zero, h.can_flush, h.can_fua, h.can_multi_conn]:
    assert can(), can
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096


def pattern(seed, length):
    return bytearray((seed + index * 7) % 251 for index in range(length))


def status(offset, length):
    """The runs of a range: lengths and flags, asked for until its end."""
    runs = []

    def take(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset and error.value == 0
        runs.extend(zip(entries[::2], entries[1::2]))

    end = offset + length
    while offset < end:
        before = len(runs)
        h.block_status(end - offset, offset, take)
        assert len(runs) > before
        offset += sum(run[0] for run in runs[before:])
    joined = []
    for length, flags in runs:
        if joined and joined[-1][1] == flags:
            length += joined.pop()[0]
        joined.append((length, flags))
    return joined


def refused(operation, *arguments):
    """The error number that an operation fails with."""
    try:
        operation(*arguments)
    except nbd.Error as error:
        return error.errnum
    raise AssertionError("it succeeded")


# What is written is read, wherever it lies; in pieces that say where they lie.
for offset, length in [(0, 4096), (5000, 777), (GIB + 1, 3 << 20), (size - 513, 513)]:
    data = pattern(offset, length)
    h.pwrite(data, offset)
    assert h.pread(length, offset) == data
    pieces = bytearray(length)

    def piece(data, at, kind, error):
        assert kind == nbd.READ_DATA and error.value == 0
        pieces[at - offset:at - offset + len(data)] = data

    h.pread_structured(length, offset, piece, nbd.CMD_FLAG_DF)
    assert pieces == data
h.flush()
h.cache(GIB, 0)

# Many at once.
buffers = [nbd.Buffer.from_bytearray(pattern(index, 40_000)) for index in range(100)]
begun = [h.aio_pwrite(buffer, 2 * GIB + index * 50_000) for index, buffer in enumerate(buffers)]
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in begun)
for index in range(100):
    assert h.pread(40_000, 2 * GIB + index * 50_000) == pattern(index, 40_000)

# Zeros and trims of large ranges, and what is left.
large = 9 * GIB if extended else 2 * GIB
for operation, flags in [(h.zero, nbd.CMD_FLAG_FAST_ZERO), (h.trim, nbd.CMD_FLAG_FUA)]:
    h.pwrite(pattern(1, 4096), large - 4096)
    h.pwrite(pattern(2, 4096), large)
    operation(large - 8192, 8192, flags)
    assert h.pread(4096, large - 4096) == bytes(4096)
    assert h.pread(4096, large) == pattern(2, 4096)
    assert status(8192, large - 4096) == [(large - 8192, 3), (4096, 0)]
h.trim(4096, large)
h.trim(GIB, size - GIB)
if extended:
    h.zero(size, 0)
    assert status(0, size) == [(size, 3)]
    found = []
    h.block_status_64(size, 0, lambda context, at, entries, error: found.extend(entries))
    assert found[0][1] == 3
    assert h.can_block_status_payload()
    names = [nbd.CONTEXT_BASE_ALLOCATION]
    found.clear()
    take = lambda context, at, entries, error: found.extend(entries)
    h.block_status_filter(size, 0, names, take, nbd.CMD_FLAG_REQ_ONE)
    assert len(found) == 1 and found[0][1] == 3
h.zero(64 << 10, GIB, nbd.CMD_FLAG_NO_HOLE)
assert status(GIB, 64 << 10) == [(64 << 10, 0)]

# What no client should send is refused with the protocol's numbers, and the session goes on.
h.set_strict_mode(0)
assert refused(h.pread, 512, size) == errno.EINVAL
assert refused(h.pwrite, bytearray(512), size - 511) == errno.ENOSPC
assert refused(h.trim, GIB, size - 1) == errno.EINVAL
assert refused(h.zero, GIB, size - 1) == errno.ENOSPC
assert refused(h.zero, 511, 0, nbd.CMD_FLAG_FAST_ZERO) == errno.EOPNOTSUPP
assert refused(h.cache, 1, size) == errno.EINVAL
assert refused(h.trim, 512, 0, nbd.CMD_FLAG_DF) == errno.EINVAL
assert refused(h.pread, (32 << 20) + 1, 0) in [errno.EOVERFLOW, errno.ERANGE]
h.pwrite(pattern(3, 512), 0)
assert h.pread(512, 0) == pattern(3, 512)
h.shutdown()
print("done")
