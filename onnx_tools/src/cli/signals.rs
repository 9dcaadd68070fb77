//! Ctrl-C and SIGTERM remove the temporary files before the process ends.

/// Starts the thread that waits for signals. Without one, in the rare case that it cannot start, a signal
/// leaves hidden temporary files, which the next run of the same output removes.
#[cfg(unix)]
pub fn install() {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
    // Without a handler a limit on the size of files (`ulimit -f`) ends the process; with any, the write fails, and
    // that is one message with nothing left behind. Nobody reads the flag.
    let _ = signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default());
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else { return };
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            let _held = crate::staged::abandon();
            // Ends the process the way the signal would have, so that shells see the right status.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    let _ = std::thread::Builder::new().name("signals".to_string()).spawn(wait);
}

/// Nothing to do: hidden temporary files stay, and the next run of the same output removes them.
#[cfg(not(unix))]
pub fn install() {}
