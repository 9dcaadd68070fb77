//! The command as its users see it: files, exit codes, stdout and stderr.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/build.rs"]
#[allow(dead_code)]
mod build;
mod calibrate;
mod compensate;
mod constants;
mod convert;
mod files;
mod inspect;
mod interrupted;
#[path = "../support/real.rs"]
mod real;
mod real_models;
mod tool;
mod trial;
mod verify;
mod without_inputs;
