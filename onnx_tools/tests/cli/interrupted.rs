//! Conversions that are cut short leave nothing under the final names.
#![cfg(unix)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::build::raw;
use super::tool::{Folder, Ran, chain, command, large};

/// Waits for a file that the conversion is writing, or for its end.
fn wait_for_temporary(folder: &Folder, child: &mut Child) {
    let start = Instant::now();
    while !folder.names().iter().any(|n| n.starts_with('.')) && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(120), "the conversion neither writes nor ends");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start(folder: &Folder) -> Child {
    command()
        .current_dir(folder.path())
        .args(["convert", "model.onnx", "--threads", "1", "-q"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    // A process that has just ended cannot be signalled, which is as good.
    Command::new("kill").args([name, &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
}

fn many() -> Folder {
    Folder::with(&chain(512, (0..12).map(|i| raw(&format!("w{i}"), &[512, 512], i + 1)).collect()))
}

#[test]
fn a_signal_removes_the_temporary_files() {
    for name in ["-TERM", "-INT"] {
        let folder = many();
        let mut child = start(&folder);
        wait_for_temporary(&folder, &mut child);
        signal(&child, name);
        let status = child.wait().unwrap();
        match status.code() {
            // The signal came too late: all is there.
            Some(0) => assert_eq!(folder.names(), ["model.nz.onnx", "model.nz.onnx.data", "model.onnx"]),
            _ => {
                let number = if name == "-TERM" { 15 } else { 2 };
                assert_eq!(status.signal(), Some(number), "{status}");
                assert_eq!(folder.names(), ["model.onnx"]);
            }
        }
    }
}

#[test]
fn what_a_kill_leaves_the_next_conversion_removes() {
    let folder = many();
    let mut child = start(&folder);
    wait_for_temporary(&folder, &mut child);
    signal(&child, "-KILL");
    child.wait().unwrap();
    let finals = folder.names().iter().filter(|n| n.starts_with("model.nz")).count();
    assert!(finals == 0 || finals == 2, "{:?}", folder.names());
    folder.run("convert model.onnx --force -q").exits(0);
    assert_eq!(folder.names(), ["model.nz.onnx", "model.nz.onnx.data", "model.onnx"]);
    folder.run("verify model.nz.onnx --original model.onnx").exits(0);
}

#[test]
fn a_disk_that_takes_no_more_is_one_message() {
    let folder = Folder::with(&large());
    // The shell limits the size of files; without the signal that goes with it, writes fail as on a full disk.
    for signal in ["trap '' XFSZ; ", ""] {
        let tool = env!("CARGO_BIN_EXE_nz-onnx");
        let script = format!("{signal}ulimit -f 200; exec {tool} convert model.onnx");
        let output = Command::new("sh").current_dir(folder.path()).args(["-c", &script]).output().unwrap();
        Ran::new(output).complains(1, &["model.nz.onnx.data", "cannot write"]);
        assert_eq!(folder.names(), ["model.onnx"]);
    }
}
