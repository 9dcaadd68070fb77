//! Decoded weights that are kept between executions, up to a budget: the dial between memory and speed.

use std::ffi::CStr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, TryLockError};

use super::fence::{Failure, Result};

/// The session option with the budget in MiB. It must be set before the library is registered.
pub const CACHE_OPTION: &CStr = c"nz.cache_mib";
/// The environment variable with the budget in MiB, for sessions that do not set the option.
pub const CACHE_VARIABLE: &str = "NZ_CACHE_MIB";

/// The decoded weights of the sessions that were made from the same session options.
pub(crate) struct Cache {
    budget: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    kept: Vec<Arc<Entry>>,
}

/// A weight that may be kept.
struct Entry {
    bytes: usize,
    /// Executions that wanted it. Each decodes every byte once, so that this is also how hot a byte of it is.
    uses: AtomicU64,
    weights: RwLock<Option<Arc<Vec<f32>>>>,
}

/// A weight's place in a cache, given up when it is dropped.
pub(crate) struct Place {
    cache: Arc<Cache>,
    entry: Arc<Entry>,
}

impl Cache {
    /// A cache of as many MiB as `option`, the value of [`CACHE_OPTION`], or else [`CACHE_VARIABLE`] says; `None` for 0,
    /// the default.
    pub fn configured(option: Option<String>) -> Result<Option<Arc<Cache>>> {
        let variable = || std::env::var(CACHE_VARIABLE).ok().filter(|v| !v.is_empty());
        let (text, source) = match (option, variable()) {
            (Some(text), _) => (text, format!("session option {}", CACHE_OPTION.to_string_lossy())),
            (None, Some(text)) => (text, format!("environment variable {CACHE_VARIABLE}")),
            (None, None) => return Ok(None),
        };
        let bytes = text.trim().parse::<usize>().ok().and_then(|mib| mib.checked_mul(1 << 20));
        let budget = bytes.ok_or_else(|| {
            let message =
                format!("{source} is '{text}': set it to a whole number of MiB, 0 to keep nothing decoded");
            Failure::invalid(message)
        })?;
        Ok(Cache::of(budget))
    }

    /// A cache of so many bytes; `None` for 0.
    pub fn of(budget: usize) -> Option<Arc<Cache>> {
        (budget > 0).then(|| Arc::new(Cache { budget, state: Mutex::default() }))
    }

    /// A place for a weight of `len` elements, if the budget could ever hold it.
    pub fn place(self: &Arc<Self>, len: usize) -> Option<Place> {
        let bytes = len.checked_mul(size_of::<f32>()).filter(|&bytes| bytes <= self.budget)?;
        let entry = Arc::new(Entry { bytes, uses: AtomicU64::new(0), weights: RwLock::new(None) });
        Some(Place { cache: Arc::clone(self), entry })
    }

    /// Reserves room for `entry`, at the cost of weights that are less than half as hot.
    fn make_room(&self, entry: &Arc<Entry>) -> bool {
        let uses = |entry: &Entry| entry.uses.load(Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.bytes + entry.bytes > self.budget {
            let coldest = (0..state.kept.len()).min_by_key(|&i| uses(&state.kept[i]));
            let Some(i) = coldest.filter(|&i| 2 * uses(&state.kept[i]) < uses(entry)) else { return false };
            let cold = Arc::clone(&state.kept[i]);
            // Weights in use just now stay: whoever fills them in may be waiting for this cache.
            let Some(mut weights) = try_write(&cold.weights) else { return false };
            *weights = None;
            state.kept.swap_remove(i);
            state.bytes -= cold.bytes;
        }
        state.bytes += entry.bytes;
        state.kept.push(Arc::clone(entry));
        true
    }

    fn remove(&self, entry: &Arc<Entry>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = state.kept.iter().position(|kept| Arc::ptr_eq(kept, entry)) {
            state.kept.swap_remove(i);
            state.bytes -= entry.bytes;
        }
    }
}

/// The lock, unless somebody has it.
fn try_write<T>(lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
    match lock.try_write() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Place {
    /// The decoded weights, if they are kept; `decode` is called to fill them in when there is room for them.
    pub fn weights(&self, decode: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Option<Arc<Vec<f32>>>> {
        self.entry.uses.fetch_add(1, Ordering::Relaxed);
        if let Some(weights) = &*self.entry.weights.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Some(Arc::clone(weights)));
        }
        // Concurrent executions wait here for the one that decodes. The cache may be waited for with an entry locked,
        // never the other way round.
        let mut slot = self.entry.weights.write().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() && self.cache.make_room(&self.entry) {
            let len = self.entry.bytes / size_of::<f32>();
            let mut weights = Vec::new();
            // A machine without the memory does without the cache.
            let decoded = match weights.try_reserve_exact(len) {
                Ok(()) => {
                    weights.resize(len, 0.0);
                    decode(&mut weights).map(|()| true)
                }
                Err(_) => Ok(false),
            };
            match decoded {
                Ok(true) => *slot = Some(Arc::new(weights)),
                _ => self.cache.remove(&self.entry),
            }
            decoded?;
        }
        Ok(slot.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cache.remove(&self.entry);
    }
}

/// Cuts `len` weights into `parts` parts of whole blocks, the last of which may have fewer.
pub(crate) fn cut(len: usize, block: usize, parts: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let step = len.div_ceil(parts.max(1)).next_multiple_of(block).max(1);
    (0..len.div_ceil(step)).map(move |i| i * step..((i + 1) * step).min(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(value: f32) -> impl FnOnce(&mut [f32]) -> Result<()> {
        move |out| {
            out.fill(value);
            Ok(())
        }
    }

    #[test]
    fn keeps_what_fits_and_prefers_what_is_hot() {
        let cache = Cache::configured(Some("1".into())).expect("valid").expect("not 0");
        let large = 3 << 16; // three quarters of a MiB
        let (a, b) = (cache.place(large).expect("fits"), cache.place(large).expect("fits"));
        assert!(cache.place(1 << 19).is_none());
        assert!(a.weights(fill(1.0)).is_ok_and(|w| w.is_some_and(|w| w[large - 1] == 1.0)));
        assert!(b.weights(fill(2.0)).is_ok_and(|w| w.is_none()));
        // Kept: not decoded again.
        assert!(a.weights(|_| panic!("kept weights are not decoded")).is_ok_and(|w| w.is_some()));
        // More than twice as hot: the other makes room.
        let kept = (0..10).filter(|_| b.weights(fill(2.0)).is_ok_and(|w| w.is_some())).count();
        assert!((1..10).contains(&kept), "{kept}");
        assert!(a.weights(fill(1.0)).is_ok_and(|w| w.is_none()));
        drop(b);
        assert!(a.weights(fill(3.0)).is_ok_and(|w| w.is_some_and(|w| w[0] == 3.0)));
    }

    #[test]
    fn failure_to_decode_leaves_room() {
        let cache = Cache::configured(Some("1".into())).expect("valid").expect("not 0");
        let (a, b) = (cache.place(1 << 18).expect("fits"), cache.place(1 << 18).expect("fits"));
        assert!(a.weights(|_| Err(Failure::fail("damaged"))).is_err());
        assert!(b.weights(fill(1.0)).is_ok_and(|w| w.is_some()));
    }

    #[test]
    fn budget_must_be_a_number() {
        assert!(Cache::configured(Some("0".into())).is_ok_and(|c| c.is_none()));
        assert!(Cache::configured(Some(" 64 ".into())).is_ok_and(|c| c.is_some()));
        for text in ["", "-1", "1.5", "1 GiB", "18446744073709551615"] {
            assert!(Cache::configured(Some(text.into())).is_err(), "{text}");
        }
    }

    #[test]
    fn parts_are_whole_blocks() {
        let parts: Vec<_> = cut(100, 16, 3).collect();
        assert_eq!(parts, [0..48, 48..96, 96..100]);
        assert_eq!(cut(5, 4096, 8).len(), 1);
    }
}
