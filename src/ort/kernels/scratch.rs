//! Memory of a thread for decoded weights. It is kept between executions: at most 1 MiB a thread.

use std::cell::RefCell;

/// The most weights that a thread holds decoded at a time: 1 MiB of float32.
pub(crate) const CAPACITY: usize = 1 << 18;

/// Floats of a cache line: a vector that does not cross one is stored twice as fast.
const LINE: usize = 16;

thread_local! {
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with `len` floats of this thread's memory, of any content.
///
/// # Panics
/// `len` is over [`CAPACITY`], or `body` comes back here.
pub(crate) fn with<T>(len: usize, body: impl FnOnce(&mut [f32]) -> T) -> T {
    assert!(len <= CAPACITY, "scratch of {len} weights");
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len + LINE {
            buffer.clear();
            buffer.reserve_exact(len + LINE);
            buffer.resize(len + LINE, 0.0);
        }
        let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        body(&mut buffer[start..start + len])
    })
}
