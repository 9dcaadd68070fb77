//! The fence between Rust and the host: an error or a panic becomes a status, nothing unwinds into C++.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ort_sys::{OrtErrorCode, OrtStatusPtr};

use super::api::Api;

/// Why a callback failed: what ONNX Runtime will show to the user.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    code: OrtErrorCode,
    message: String,
}

/// `std::result::Result` with a [`Failure`].
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The model, its file or the session is at fault.
    pub fn fail(message: impl Into<String>) -> Self {
        Failure { code: OrtErrorCode::ORT_FAIL, message: message.into() }
    }

    /// An input of the node is at fault.
    pub fn invalid(message: impl Into<String>) -> Self {
        Failure { code: OrtErrorCode::ORT_INVALID_ARGUMENT, message: message.into() }
    }

    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        Failure {
            code: OrtErrorCode::ORT_RUNTIME_EXCEPTION,
            message: format!("internal error in nz-onnx {}: panic: {text}", crate::VERSION),
        }
    }

    /// The same failure, with where it happened in front.
    pub fn at(self, place: impl std::fmt::Display) -> Self {
        Failure { message: format!("{place}: {}", self.message), ..self }
    }

    /// As a status that the host owns.
    pub fn into_status(self, api: Api) -> OrtStatusPtr {
        api.status(self.code, self.message)
    }
}

/// Runs `body`; a panic in it becomes a [`Failure`].
pub(crate) fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // The state that a panic may leave half-changed is scratch memory, which is written before it is read.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(Failure::panicked(payload.as_ref())))
}

/// Runs the body of a callback that reports by status: null for success.
pub(crate) fn guard(api: Api, body: impl FnOnce() -> Result<()>) -> OrtStatusPtr {
    match catch(body) {
        Ok(()) => OrtStatusPtr::default(),
        Err(failure) => failure.into_status(api),
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_failure_with_its_message() {
        let failure = catch::<()>(|| panic!("lost {}", 7)).unwrap_err();
        assert_eq!(failure.code, OrtErrorCode::ORT_RUNTIME_EXCEPTION);
        assert!(failure.message.ends_with("panic: lost 7"), "{}", failure.message);
        let failure = catch::<()>(|| panic!("plain")).unwrap_err();
        assert!(failure.message.ends_with("panic: plain"), "{}", failure.message);
    }

    #[test]
    fn a_failure_names_its_place_first() {
        assert_eq!(Failure::fail("b").at("a").message, "a: b");
    }
}
