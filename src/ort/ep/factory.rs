//! The provider's entry points, and the factory that ONNX Runtime gets from them.

use std::ffi::{CStr, c_char};
use std::sync::{Mutex, PoisonError};

use ort_sys::{
    OrtAllocator, OrtApiBase, OrtCustomOpDomain, OrtEpDevice, OrtErrorCode, OrtHardwareDevice,
    OrtHardwareDeviceType, OrtKeyValuePairs, OrtLogger, OrtMemoryInfo, OrtSessionOptions, OrtStatusPtr,
};

use super::provider::Provider;
use super::{EpApi, PROVIDER, PROVIDER_C};
use crate::ort::api::{Api, HostVersion};
use crate::ort::depth;
use crate::ort::ep_sys::{self, EP_API_LEVEL, EP_API_NEWEST, OrtDataTransferImpl, OrtEp, OrtEpFactory};
use crate::ort::fence::{self, Failure, Result};

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// The host holds the address of `table`, the first field, and so of the whole.
#[repr(C)]
struct Factory {
    table: OrtEpFactory,
    api: EpApi,
}

/// Makes the factory of `NzExecutionProvider`: the entry point that `RegisterExecutionProviderLibrary` and its kin in
/// every language look for.
///
/// Returns null for success, or a status that the caller owns.
///
/// # Safety
/// To be called by ONNX Runtime, with its API base and room for `max` factories.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "system" fn CreateEpFactories(
    _name: *const c_char,
    base: *const OrtApiBase,
    _logger: *const OrtLogger,
    factories: *mut *mut OrtEpFactory,
    max: usize,
    count: *mut usize,
) -> OrtStatusPtr {
    // SAFETY: the host passes its static API base, or null by mistake.
    let Some(base) = (unsafe { base.as_ref() }) else {
        return OrtStatusPtr::default();
    };
    // SAFETY: a static C string of the host's.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy();
    let host = HostVersion::parse(&version);
    // SAFETY: the base is the host's own; every host has level 1, whose table is static.
    let (modern, oldest) = unsafe { (EpApi::new(base, host), Api::new((base.GetApi)(1), host)) };
    match (modern, oldest) {
        (Some(api), _) => fence::guard(api.api(), || {
            if max == 0 {
                return Err(Failure::invalid("room for one factory is needed, there is none"));
            }
            stay_loaded();
            // SAFETY: there is room for a factory and its count; `ReleaseEpFactory` takes it back.
            unsafe {
                factories.write(take(api, host));
                count.write(1);
            }
            Ok(())
        }),
        (None, Some(oldest)) => {
            let message = format!(
                "{PROVIDER} of nz-onnx {} needs ONNX Runtime 1.{EP_API_LEVEL} or later, this is {version}: update ONNX \
                 Runtime, or convert the model with `nz-onnx convert` and register the library for its custom ops, \
                 which take 1.17",
                crate::VERSION
            );
            oldest.status(OrtErrorCode::ORT_NOT_IMPLEMENTED, message)
        }
        // Not an ONNX Runtime: every one has level 1, and without it there is no way to say more.
        (None, None) => OrtStatusPtr::default(),
    }
}

/// Takes a factory back.
///
/// # Safety
/// `factory` comes from [`CreateEpFactories`]; no new provider is made with it.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "system" fn ReleaseEpFactory(factory: *mut OrtEpFactory) -> OrtStatusPtr {
    let mut kept = FACTORIES.lock().unwrap_or_else(PoisonError::into_inner);
    kept.iter_mut()
        .filter(|kept| std::ptr::eq(kept.factory.cast(), factory))
        .for_each(|kept| kept.taken = false);
    OrtStatusPtr::default()
}

/// A factory that lives as long as the process, and whether a registration has it.
struct Kept {
    factory: *mut Factory,
    taken: bool,
}

// SAFETY: a factory is only read once it is made.
unsafe impl Send for Kept {}

/// As many as there ever were at a time. ONNX Runtime releases a provider through its factory, and does so after the
/// factory's own release where a session outlives the registration.
static FACTORIES: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// A factory that nobody has.
fn take(api: EpApi, host: HostVersion) -> *mut OrtEpFactory {
    let mut kept = FACTORIES.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: factories are never freed.
    let is_of_host = |kept: &Kept| std::ptr::eq(unsafe { (*kept.factory).api }.table(), api.table());
    if let Some(free) = kept.iter_mut().find(|kept| !kept.taken && is_of_host(kept)) {
        free.taken = true;
        return free.factory.cast();
    }
    let factory = Box::into_raw(Box::new(Factory { table: table(host), api }));
    kept.push(Kept { factory, taken: true });
    factory.cast()
}

/// Keeps the library in memory until the process ends: threads may still be on their way out of it, and ONNX Runtime
/// unloads it with the registration.
fn stay_loaded() {
    #[cfg(target_os = "linux")]
    // SAFETY: `info` is written before it is read; the name is the loader's own, and loading what is loaded already has
    // no effect but the flag's.
    unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        if libc::dladdr(stay_loaded as *const libc::c_void, &mut info) != 0 && !info.dli_fname.is_null() {
            libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
        }
    }
}

fn table(host: HostVersion) -> OrtEpFactory {
    OrtEpFactory {
        ort_version_supported: host.0.min(EP_API_NEWEST),
        GetName: get_name,
        GetVendor: get_vendor,
        GetSupportedDevices: get_supported_devices,
        CreateEp: create_ep,
        ReleaseEp: release_ep,
        GetVendorId: get_vendor_id,
        GetVersion: get_version,
        ValidateCompiledModelCompatibilityInfo: None,
        CreateAllocator: create_allocator,
        ReleaseAllocator: release_allocator,
        CreateDataTransfer: create_data_transfer,
        IsStreamAware: is_stream_aware,
        _13: ep_sys::gap(),
        GetNumCustomOpDomains: get_num_custom_op_domains,
        GetCustomOpDomains: get_custom_op_domains,
        _18: ep_sys::gap(),
    }
}

/// The tables of a factory's host.
///
/// # Safety
/// `this` is a factory that [`CreateEpFactories`] made.
unsafe fn api(this: *const OrtEpFactory) -> EpApi {
    // SAFETY: the caller's promise.
    unsafe { (*this.cast::<Factory>()).api }
}

unsafe extern "system" fn get_name(_: *const OrtEpFactory) -> *const c_char {
    PROVIDER_C.as_ptr()
}

unsafe extern "system" fn get_vendor(_: *const OrtEpFactory) -> *const c_char {
    c"nz-onnx".as_ptr()
}

unsafe extern "system" fn get_vendor_id(_: *const OrtEpFactory) -> u32 {
    // No maker of hardware.
    0
}

unsafe extern "system" fn get_version(_: *const OrtEpFactory) -> *const c_char {
    VERSION.as_ptr().cast()
}

unsafe extern "system" fn get_supported_devices(
    this: *mut OrtEpFactory,
    devices: *const *const OrtHardwareDevice,
    count: usize,
    out: *mut *mut OrtEpDevice,
    max: usize,
    found: *mut usize,
) -> OrtStatusPtr {
    // SAFETY: the host passes what `CreateEpFactories` gave it.
    let api = unsafe { api(this) };
    fence::guard(api.api(), || {
        // SAFETY: there are `count` live devices, room for `max` answers and for their number. Memory is the CPU's where
        // nothing else is said.
        unsafe {
            found.write(0);
            let is_cpu = |device: &*const OrtHardwareDevice| {
                (api.table().HardwareDevice_Type)(*device) == OrtHardwareDeviceType::OrtHardwareDeviceType_CPU
            };
            let cpu = (0..count).map(|i| *devices.add(i)).find(is_cpu).filter(|_| max > 0);
            if let Some(cpu) = cpu {
                let none = std::ptr::null();
                api.check((api.ep().CreateEpDevice)(this, cpu, none, none, out))?;
                found.write(1);
            }
        }
        Ok(())
    })
}

unsafe extern "system" fn create_ep(
    this: *mut OrtEpFactory,
    _devices: *const *const OrtHardwareDevice,
    _metadata: *const *const OrtKeyValuePairs,
    _count: usize,
    options: *const OrtSessionOptions,
    logger: *const OrtLogger,
    out: *mut *mut OrtEp,
) -> OrtStatusPtr {
    // SAFETY: as in `get_supported_devices`.
    let api = unsafe { api(this) };
    fence::guard(api.api(), || {
        // SAFETY: options and logger are the session's; there is a place for the provider, which `release_ep` takes back.
        unsafe { out.write(Provider::create(api, options, logger)?) };
        Ok(())
    })
}

unsafe extern "system" fn release_ep(_: *mut OrtEpFactory, ep: *mut OrtEp) {
    // SAFETY: the host is done with what `create_ep` gave it.
    let release = || unsafe {
        Provider::release(ep);
        Ok(())
    };
    // There is nobody to report a panic to; it must not leave this function all the same.
    let _: Result<()> = fence::catch(release);
}

unsafe extern "system" fn create_allocator(
    _: *mut OrtEpFactory,
    _: *const OrtMemoryInfo,
    _: *const OrtKeyValuePairs,
    out: *mut *mut OrtAllocator,
) -> OrtStatusPtr {
    // None of our own: the CPU's. SAFETY: the host's place for the answer.
    unsafe { out.write(std::ptr::null_mut()) };
    OrtStatusPtr::default()
}

unsafe extern "system" fn release_allocator(_: *mut OrtEpFactory, _: *mut OrtAllocator) {}

unsafe extern "system" fn create_data_transfer(
    _: *mut OrtEpFactory,
    out: *mut *mut OrtDataTransferImpl,
) -> OrtStatusPtr {
    // Nothing to copy between. SAFETY: the host's place for the answer.
    unsafe { out.write(std::ptr::null_mut()) };
    OrtStatusPtr::default()
}

unsafe extern "system" fn is_stream_aware(_: *const OrtEpFactory) -> bool {
    false
}

unsafe extern "system" fn get_num_custom_op_domains(_: *mut OrtEpFactory, count: *mut usize) -> OrtStatusPtr {
    // SAFETY: the host's place for the answer.
    unsafe { count.write(1) };
    OrtStatusPtr::default()
}

/// The ops of converted models, which the CPU runs as it does with the custom op library.
unsafe extern "system" fn get_custom_op_domains(
    this: *mut OrtEpFactory,
    out: *mut *mut OrtCustomOpDomain,
    count: usize,
) -> OrtStatusPtr {
    // SAFETY: as in `get_supported_devices`.
    let api = unsafe { api(this) }.api();
    fence::guard(api, || {
        if count > 0 {
            // SAFETY: there is room for `count` domains.
            unsafe { out.write(crate::ort::domain(api, None, depth::configured(None, None)?)?) };
        }
        Ok(())
    })
}
