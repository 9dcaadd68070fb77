//! The execution provider: models that nobody converted, with their weights compressed when a session is made.

mod claim;
mod factory;
mod graph;
mod kernel;
mod options;
mod plan;
mod provider;
mod session;
mod slot;
mod store;
mod ties;

use std::ffi::CStr;

use ort_sys::OrtApiBase;

use super::api::{Api, HostVersion};
use super::ep_sys::{EP_API_LEVEL, OrtApi24, OrtEpApi};
use super::fence::Result;

pub(crate) use slot::Reading;

/// The provider's name.
pub const PROVIDER: &str = "NzExecutionProvider";
const PROVIDER_C: &CStr = c"NzExecutionProvider";
/// The environment variable that, set to 1, has each session's provider say on standard error what it did.
pub const LOG_VARIABLE: &str = "NZ_LOG";
/// The environment variable with the path of a file to which each session's provider appends a line of JSON.
pub const STATS_VARIABLE: &str = "NZ_STATS";

/// The tables of a host that has providers. They live as long as the process.
#[derive(Clone, Copy)]
struct EpApi {
    api: Api,
    table: &'static OrtApi24,
    ep: &'static OrtEpApi,
}

impl EpApi {
    /// The host's tables, if it has those of [`EP_API_LEVEL`].
    ///
    /// # Safety
    /// `base` is the host's own.
    unsafe fn new(base: &OrtApiBase, host: HostVersion) -> Option<Self> {
        // SAFETY: `GetApi` returns null or a static table, which at this level reaches as far as `OrtApi24` does;
        // `OrtApi`, its first field, is a table of a lower level.
        unsafe {
            let table = (base.GetApi)(EP_API_LEVEL);
            let (api, table) = (Api::new(table, host)?, table.cast::<OrtApi24>().as_ref()?);
            let ep = (table.GetEpApi)().as_ref()?;
            Some(EpApi { api, table, ep })
        }
    }

    fn api(self) -> Api {
        self.api
    }

    fn table(self) -> &'static OrtApi24 {
        self.table
    }

    fn ep(self) -> &'static OrtEpApi {
        self.ep
    }

    fn check(self, status: ort_sys::OrtStatusPtr) -> Result<()> {
        self.api.check(status)
    }
}
