//! Cache lines on their way to memory, by the best instruction that the processor has.

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::WriteBack;

#[cfg(not(target_arch = "x86_64"))]
pub(super) use by_the_kernel::WriteBack;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __cpuid, __cpuid_count, __m128i, _mm_clflush, _mm_loadu_si128, _mm_sfence, _mm_stream_si128,
    };
    use std::io;

    /// Bytes of a cache line of every processor of this kind.
    const LINE: usize = 64;
    /// Where CPUID lists the instructions, and their bits in EBX.
    const LEAF: u32 = 7;
    const CLFLUSHOPT: u32 = 1 << 23;
    const CLWB: u32 = 1 << 24;
    /// Bytes that one store past the caches has.
    const STORE: usize = size_of::<__m128i>();

    /// How a line is written back.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) enum WriteBack {
        /// Written back and kept.
        Clwb,
        /// Written back and dropped, in any order.
        Clflushopt,
        /// Written back and dropped, one after the other.
        Clflush,
    }

    impl WriteBack {
        /// The best that there is.
        pub(in super::super) fn of_this_machine() -> Self {
            Self::from_features(features())
        }

        fn from_features(ebx: u32) -> Self {
            if ebx & CLWB != 0 {
                Self::Clwb
            } else if ebx & CLFLUSHOPT != 0 {
                Self::Clflushopt
            } else {
                Self::Clflush
            }
        }

        /// Writes back every line of the range; they have arrived after [`WriteBack::fence`].
        ///
        /// # Safety
        ///
        /// The range must be mapped.
        #[expect(clippy::unnecessary_wraps, reason = "other machines ask the kernel")]
        pub(in super::super) unsafe fn lines(self, start: *mut u8, len: usize) -> io::Result<()> {
            let first = start.wrapping_sub(start.addr() % LINE);
            let bytes = start.addr() - first.addr() + len;
            for offset in (0..bytes).step_by(LINE) {
                let line = first.wrapping_add(offset);
                // SAFETY: the line has a byte of the range in it, which is mapped (the caller's
                // promise), and mappings are whole pages. The processor has the instruction. No
                // byte changes; that asm may touch memory keeps the compiler from moving the
                // writes before it to behind it.
                unsafe {
                    match self {
                        Self::Clwb => {
                            asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
                        }
                        Self::Clflushopt => {
                            asm!(
                                "clflushopt [{}]",
                                in(reg) line,
                                options(nostack, preserves_flags)
                            );
                        }
                        Self::Clflush => _mm_clflush(line),
                    }
                }
            }
            Ok(())
        }

        /// Copies whole cache lines past the caches; they have arrived after
        /// [`WriteBack::fence`].
        ///
        /// # Safety
        ///
        /// As many bytes from `to` on must be mapped, and none of `from`.
        #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as `lines`")]
        #[allow(clippy::cast_ptr_alignment, reason = "asserted, or loaded wherever they are")]
        pub(in super::super) unsafe fn stream(self, from: &[u8], to: *mut u8) -> io::Result<()> {
            assert!(to.addr().is_multiple_of(LINE) && from.len().is_multiple_of(LINE));
            for (i, bytes) in from.chunks_exact(STORE).enumerate() {
                // SAFETY: the bytes loaded are a chunk's, which may lie anywhere; those stored are
                // mapped (the caller's promise), and their address is a multiple of their size.
                // Every processor of this kind has the instructions.
                unsafe {
                    let loaded = _mm_loadu_si128(bytes.as_ptr().cast());
                    _mm_stream_si128(to.wrapping_add(i * STORE).cast(), loaded);
                }
            }
            Ok(())
        }

        /// Waits until all lines have arrived.
        #[expect(clippy::unused_self, reason = "what comes after `lines`")]
        pub(in super::super) fn fence(self) {
            // SAFETY: every processor of this kind has the instruction; it touches no memory.
            unsafe { _mm_sfence() }
        }
    }

    /// EBX of the leaf; nothing where the processor has no such leaf.
    fn features() -> u32 {
        if __cpuid(0).eax < LEAF { 0 } else { __cpuid_count(LEAF, 0).ebx }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Goal: the best instruction is chosen, and what this machine has works on any range.
        #[test]
        fn the_best_is_chosen() {
            assert_eq!(WriteBack::from_features(CLWB | CLFLUSHOPT), WriteBack::Clwb);
            assert_eq!(WriteBack::from_features(CLFLUSHOPT), WriteBack::Clflushopt);
            assert_eq!(WriteBack::from_features(0), WriteBack::Clflush);
            let mut bytes = [7_u8; 1000];
            for (start, len) in [(0, 1000), (1, 1), (63, 2), (5, 0)] {
                let start = bytes[start..].as_mut_ptr();
                for by in [WriteBack::of_this_machine(), WriteBack::Clflush] {
                    // SAFETY: the range is of the array.
                    unsafe { by.lines(start, len) }.unwrap();
                    by.fence();
                }
            }
            assert_eq!(bytes, [7; 1000]);
        }

        /// Goal: what goes past the caches is there, all of it and nothing beside it, wherever it
        /// comes from.
        #[test]
        fn lines_go_past_the_caches() {
            #[repr(align(64))]
            struct Lines([u8; 512]);
            let from: Vec<u8> = (0..300_u32).map(|i| i as u8).collect();
            for (start, len) in [(0, 256), (1, 256), (7, 64), (3, 0)] {
                let mut lines = Lines([0xee; 512]);
                let by = WriteBack::of_this_machine();
                let to = lines.0[64..].as_mut_ptr();
                // SAFETY: the range is of the array, and a whole number of lines.
                unsafe { by.stream(&from[start..start + len], to) }.unwrap();
                by.fence();
                assert_eq!(lines.0[64..64 + len], from[start..start + len]);
                assert_eq!(lines.0[..64], [0xee; 64]);
                assert_eq!(lines.0[64 + len..], vec![0xee; 448 - len]);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod by_the_kernel {
    use std::io;
    use std::ptr::NonNull;

    use nix::sys::mman::{MsFlags, msync};
    use nix::unistd::{SysconfVar, sysconf};

    /// The kernel writes back, for whatever processor it is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) struct WriteBack {
        page: usize,
    }

    impl WriteBack {
        /// The one way that there is.
        pub(in super::super) fn of_this_machine() -> Self {
            let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
            let page = page.and_then(|page| usize::try_from(page).ok());
            Self { page: page.expect("every system has pages") }
        }

        /// Writes back every page of the range, and waits until they have arrived.
        ///
        /// # Safety
        ///
        /// The range must be mapped.
        pub(in super::super) unsafe fn lines(self, start: *mut u8, len: usize) -> io::Result<()> {
            let first = start.wrapping_sub(start.addr() % self.page);
            let bytes = start.addr() - first.addr() + len;
            let first = NonNull::new(first.cast()).expect("no mapping is at address zero");
            // SAFETY: the pages have bytes of the range in them, which is mapped (the caller's
            // promise); no byte changes.
            unsafe { msync(first, bytes, MsFlags::MS_SYNC) }.map_err(io::Error::from)
        }

        /// Copies bytes, and has the kernel write them back.
        ///
        /// # Safety
        ///
        /// As many bytes from `to` on must be mapped, and none of `from`.
        pub(in super::super) unsafe fn stream(self, from: &[u8], to: *mut u8) -> io::Result<()> {
            // SAFETY: the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
                self.lines(to, from.len())
            }
        }

        /// All has arrived already.
        pub(in super::super) fn fence(self) {}
    }
}
