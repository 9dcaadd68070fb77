//! What the parts of one session's provider share, and what it says about itself in the end.

use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ort_sys::{OrtLogger, OrtLoggingLevel};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::store::Store;
use super::{EpApi, LOG_VARIABLE, PROVIDER, STATS_VARIABLE};
use crate::ort::api::threads;
use crate::ort::cache::Cache;
use crate::ort::fence::{Failure, Result};
use crate::ort::kernels::Buffers;

/// What slots and the provider share.
pub(super) struct Shared {
    /// Where decoded weights may be kept.
    pub cache: Option<Arc<Cache>>,
    /// Where blobs are kept from session to session.
    pub store: Option<Store>,
    pub tally: Tally,
    /// What kernels work in.
    pub buffers: Arc<Buffers>,
    /// Threads that encode, while the session is being made. They are no threads of ONNX Runtime's, and none of the
    /// process's own: those would stay, and be lost in a fork.
    pool: Mutex<Option<Arc<ThreadPool>>>,
    /// Bytes of originals that ONNX Runtime may have freed since they were last given back to the system.
    untrimmed: AtomicU64,
}

/// Bytes of originals after which free memory is given back.
const TRIM_EVERY: u64 = 16 << 20;

impl Shared {
    pub fn new(cache: Option<Arc<Cache>>, store: Option<Store>) -> Self {
        Shared {
            cache,
            store,
            tally: Tally::default(),
            buffers: Arc::default(),
            pool: Mutex::new(None),
            untrimmed: AtomicU64::new(0),
        }
    }

    /// Runs `body` so that what it does in parallel runs on all cores.
    pub fn on_all_cores<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let pool = {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            match &*pool {
                Some(pool) => Arc::clone(pool),
                None => {
                    let named = |i| format!("nz-encode-{i}");
                    let made = ThreadPoolBuilder::new().num_threads(threads()).thread_name(named).build();
                    let made = made.map_err(|e| Failure::fail(format!("no threads to encode on: {e}")))?;
                    Arc::clone(pool.insert(Arc::new(made)))
                }
            }
        };
        Ok(pool.install(body))
    }

    /// Lets the threads go.
    pub fn rest(&self) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = None;
        trim();
    }

    /// To be called before a weight of so many bytes is packed: now and then those before it are given back.
    pub fn trim(&self, bytes: u64) {
        if self.untrimmed.fetch_add(bytes, Ordering::Relaxed) >= TRIM_EVERY {
            self.untrimmed.store(0, Ordering::Relaxed);
            trim();
        }
    }
}

/// Gives free memory back to the system. The C library's allocator would keep that of originals of less than 32 MiB.
fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, and touches nothing but free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What has been done for a session.
#[derive(Default)]
pub(super) struct Tally {
    weights: AtomicU64,
    before: AtomicU64,
    after: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Tally {
    /// Counts a weight and its bytes.
    pub fn packed(&self, before: u64, after: u64) {
        self.weights.fetch_add(1, Ordering::Relaxed);
        self.before.fetch_add(before, Ordering::Relaxed);
        self.after.fetch_add(after, Ordering::Relaxed);
    }

    /// Counts time.
    pub fn spent(&self, time: Duration) {
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// How many weights there are.
    pub fn weights(&self) -> u64 {
        self.weights.load(Ordering::Relaxed)
    }

    fn summary(&self) -> Summary {
        Summary {
            weights: self.weights(),
            before: self.before.load(Ordering::Relaxed),
            after: self.after.load(Ordering::Relaxed),
            seconds: self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9,
        }
    }
}

struct Summary {
    weights: u64,
    before: u64,
    after: u64,
    seconds: f64,
}

impl Summary {
    fn line(&self) -> String {
        let Summary { weights, before, after, seconds } = self;
        if *weights == 0 {
            return format!("{PROVIDER}: no weight of this model was compressed");
        }
        let mib = |bytes: &u64| *bytes as f64 / f64::from(1 << 20);
        format!(
            "{PROVIDER}: {weights} weights compressed from {:.1} MiB to {:.1} MiB ({:.1} %) in {seconds:.2} s",
            mib(before),
            mib(after),
            100.0 * *after as f64 / (*before).max(1) as f64
        )
    }

    fn json(&self) -> String {
        let Summary { weights, before, after, seconds } = self;
        format!(
            r#"{{"schema":"nz-onnx.session/1","provider":"{PROVIDER}","version":"{}","process":{},"weights":{weights},"#,
            crate::VERSION,
            std::process::id()
        ) + &format!(r#""bytes_before":{before},"bytes_after":{after},"seconds":{seconds:.6}}}"#)
    }
}

/// Where a session's messages go.
pub(super) struct Log {
    api: EpApi,
    /// ONNX Runtime's logger; it lives as long as the session.
    logger: *const OrtLogger,
    aloud: bool,
    stats: Option<PathBuf>,
}

impl Log {
    pub fn new(api: EpApi, logger: *const OrtLogger) -> Self {
        let stats = std::env::var_os(STATS_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        Log { api, logger, aloud: std::env::var_os(LOG_VARIABLE).is_some_and(|value| value == "1"), stats }
    }

    pub fn info(&self, message: &str) {
        self.say(OrtLoggingLevel::ORT_LOGGING_LEVEL_INFO, message);
    }

    pub fn warn(&self, message: &str) {
        self.say(OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING, message);
    }

    fn say(&self, level: OrtLoggingLevel, message: &str) {
        if self.aloud {
            eprintln!("nz-onnx: {message}");
        }
        #[cfg(not(windows))]
        let file = c"nz-onnx".as_ptr();
        #[cfg(windows)]
        let file = [0u16].as_ptr();
        let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
        let log = self.api.table().base.Logger_LogMessage;
        // SAFETY: the logger lives as long as the session; the host copies the strings.
        let status =
            unsafe { log(self.logger, level, text.as_ptr(), file, 0, c"NzExecutionProvider".as_ptr()) };
        // There is nobody to tell that a message was lost.
        self.api.check(status).ok();
    }

    /// Says what was done for the session.
    pub fn sum_up(&self, tally: &Tally) {
        let summary = tally.summary();
        self.info(&summary.line());
        if let Some(path) = &self.stats
            && let Err(error) = append(path, &summary.json())
        {
            self.warn(&format!("{STATS_VARIABLE}={}: {error}", path.display()));
        }
    }
}

/// Appends a line in one piece, so that those of several processes do not mix.
fn append(path: &Path, line: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_summed_up() {
        let tally = Tally::default();
        tally.packed(4 << 20, 3 << 20);
        tally.packed(4 << 20, 3 << 20);
        tally.spent(Duration::from_millis(1500));
        let summary = tally.summary();
        let line = summary.line();
        assert!(
            line.contains("2 weights") && line.contains("8.0 MiB to 6.0 MiB (75.0 %) in 1.50 s"),
            "{line}"
        );
        let json = summary.json();
        assert!(
            json.starts_with(r#"{"schema":"nz-onnx.session/1","provider":"NzExecutionProvider","version":""#),
            "{json}"
        );
        let end = r#""weights":2,"bytes_before":8388608,"bytes_after":6291456,"seconds":1.500000}"#;
        assert!(json.ends_with(end), "{json}");
    }

    #[test]
    fn work_runs_on_threads_that_can_go_and_come_back() {
        let shared = Shared::new(None, None);
        for _ in 0..2 {
            assert_eq!(shared.on_all_cores(rayon::current_num_threads).expect("threads"), threads());
            shared.rest();
        }
    }
}
