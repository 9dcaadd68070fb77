//! Memory that the kernels of one session take turns with.

use std::mem;
use std::sync::{Mutex, PoisonError};

/// The most floats that are kept between executions: 4 MiB.
pub(crate) const LARGEST: usize = 1 << 20;

/// One buffer, of the largest size that was asked for, up to [`LARGEST`].
///
/// A buffer made and freed in each execution is as much memory to the process, once the allocator has learnt to keep
/// it, and as much again in every thread's heap that ever had one.
#[derive(Default)]
pub(crate) struct Buffers {
    kept: Mutex<Vec<f32>>,
}

impl Buffers {
    /// Calls `body` with `len` floats of any content. Those who come while the buffer is in use get one of their own.
    pub fn with<T>(&self, len: usize, body: impl FnOnce(&mut [f32]) -> T) -> T {
        let mut buffer = mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        if buffer.len() < len {
            // Never both at once.
            drop(mem::take(&mut buffer));
            buffer = vec![0.0; len];
        }
        let result = body(&mut buffer[..len]);
        if buffer.len() <= LARGEST {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < buffer.len() {
                mem::swap(&mut *kept, &mut buffer);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> usize {
        buffers.kept.lock().expect("no panic").len()
    }

    #[test]
    fn the_largest_that_is_not_too_large_is_kept() {
        let buffers = Buffers::default();
        for (len, then) in [(10, 10), (7, 10), (20, 20), (LARGEST + 1, 0), (LARGEST, LARGEST)] {
            assert_eq!(buffers.with(len, |buffer| buffer.len()), len);
            assert_eq!(kept(&buffers), then, "after {len}");
        }
    }

    #[test]
    fn a_buffer_in_use_is_nobody_elses() {
        let buffers = Buffers::default();
        buffers.with(4, |outer| {
            outer.fill(1.0);
            buffers.with(9, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 4]);
        });
        assert_eq!(kept(&buffers), 9);
    }
}
