//! Memory of a thread for decoded weights. It is kept between executions: at most 1 MiB a thread.

use std::cell::RefCell;

/// The most weights that a thread holds decoded at a time: 1 MiB of float32.
pub(crate) const CAPACITY: usize = 1 << 18;

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
        if buffer.len() < len {
            buffer.clear();
            buffer.reserve_exact(len);
            buffer.resize(len, 0.0);
        }
        body(&mut buffer[..len])
    })
}
