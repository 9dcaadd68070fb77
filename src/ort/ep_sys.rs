//! ONNX Runtime's tables for plugin execution providers, which `ort-sys` does not have.
//!
//! Field order is that of `onnxruntime_c_api.h` and `onnxruntime_ep_c_api.h`; entries that this library does not
//! use are gaps. A table only ever grows at its end, so that these prefixes fit every later host.

#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_void};

use ort_sys::{
    ONNXTensorElementDataType, OrtAllocator, OrtApi, OrtCustomOpDomain, OrtEpDevice,
    OrtExternalInitializerInfo, OrtGraph, OrtHardwareDevice, OrtHardwareDeviceType, OrtKernelContext,
    OrtKernelInfo, OrtKeyValuePairs, OrtLogger, OrtMemoryInfo, OrtNode, OrtOpAttr, OrtSessionOptions,
    OrtStatusPtr, OrtTypeInfo, OrtValue, OrtValueInfo, os_char,
};

/// The level of the C API that a provider needs: that of 1.24, the first with kernel registries.
pub(crate) const EP_API_LEVEL: u32 = 24;
/// The latest level whose entries of [`OrtEp`] are filled in.
pub(crate) const EP_API_NEWEST: u32 = 27;

/// Entries that are not used here.
type Gap<const N: usize> = [Option<unsafe extern "system" fn()>; N];
const UNUSED: Option<unsafe extern "system" fn()> = None;

macro_rules! opaque {
    ($($name:ident),*) => { $(
        #[repr(C)]
        pub(crate) struct $name {
            _opaque: [u8; 0],
        }
    )* };
}
opaque!(
    OrtEpGraphSupportInfo,
    OrtKernelRegistry,
    OrtKernelDefBuilder,
    OrtKernelDef,
    OrtDataType,
    OrtDataTransferImpl,
    OrtSharedPrePackedWeightCache
);

const LEVEL_17: usize = size_of::<OrtApi>() / size_of::<usize>();

/// `OrtApi` up to the last entry used. `ort-sys` declares its first part at the level of custom ops.
#[repr(C)]
pub(crate) struct OrtApi24 {
    pub base: OrtApi,
    _18: Gap<{ 289 - LEVEL_17 }>,
    pub GetValueInfoName: unsafe extern "system" fn(*const OrtValueInfo, *mut *const c_char) -> OrtStatusPtr,
    pub GetValueInfoTypeInfo:
        unsafe extern "system" fn(*const OrtValueInfo, *mut *const OrtTypeInfo) -> OrtStatusPtr,
    _291: Gap<7>,
    pub GetKeyValuePairs: unsafe extern "system" fn(
        *const OrtKeyValuePairs,
        *mut *const *const c_char,
        *mut *const *const c_char,
        *mut usize,
    ),
    _299: Gap<1>,
    pub ReleaseKeyValuePairs: unsafe extern "system" fn(*mut OrtKeyValuePairs),
    _301: Gap<6>,
    pub HardwareDevice_Type: unsafe extern "system" fn(*const OrtHardwareDevice) -> OrtHardwareDeviceType,
    _308: Gap<9>,
    pub GetEpApi: unsafe extern "system" fn() -> *const OrtEpApi,
    _318: Gap<6>,
    pub ValueInfo_GetValueNumConsumers:
        unsafe extern "system" fn(*const OrtValueInfo, *mut usize) -> OrtStatusPtr,
    pub ValueInfo_GetValueConsumers:
        unsafe extern "system" fn(*const OrtValueInfo, *mut *const OrtNode, *mut i64, usize) -> OrtStatusPtr,
    pub ValueInfo_GetInitializerValue:
        unsafe extern "system" fn(*const OrtValueInfo, *mut *const OrtValue) -> OrtStatusPtr,
    pub ValueInfo_GetExternalInitializerInfo:
        unsafe extern "system" fn(*const OrtValueInfo, *mut *mut OrtExternalInitializerInfo) -> OrtStatusPtr,
    _328: Gap<2>,
    pub ValueInfo_IsGraphOutput: unsafe extern "system" fn(*const OrtValueInfo, *mut bool) -> OrtStatusPtr,
    pub ValueInfo_IsConstantInitializer:
        unsafe extern "system" fn(*const OrtValueInfo, *mut bool) -> OrtStatusPtr,
    pub ValueInfo_IsFromOuterScope: unsafe extern "system" fn(*const OrtValueInfo, *mut bool) -> OrtStatusPtr,
    _333: Gap<1>,
    pub Graph_GetModelPath: unsafe extern "system" fn(*const OrtGraph, *mut *const os_char) -> OrtStatusPtr,
    _335: Gap<9>,
    pub Graph_GetNumNodes: unsafe extern "system" fn(*const OrtGraph, *mut usize) -> OrtStatusPtr,
    pub Graph_GetNodes:
        unsafe extern "system" fn(*const OrtGraph, *mut *const OrtNode, usize) -> OrtStatusPtr,
    pub Graph_GetParentNode: unsafe extern "system" fn(*const OrtGraph, *mut *const OrtNode) -> OrtStatusPtr,
    _347: Gap<3>,
    pub Node_GetOperatorType: unsafe extern "system" fn(*const OrtNode, *mut *const c_char) -> OrtStatusPtr,
    pub Node_GetDomain: unsafe extern "system" fn(*const OrtNode, *mut *const c_char) -> OrtStatusPtr,
    _352: Gap<1>,
    pub Node_GetNumInputs: unsafe extern "system" fn(*const OrtNode, *mut usize) -> OrtStatusPtr,
    pub Node_GetInputs:
        unsafe extern "system" fn(*const OrtNode, *mut *const OrtValueInfo, usize) -> OrtStatusPtr,
    pub Node_GetNumOutputs: unsafe extern "system" fn(*const OrtNode, *mut usize) -> OrtStatusPtr,
    _356: Gap<5>,
    pub Node_GetAttributeByName:
        unsafe extern "system" fn(*const OrtNode, *const c_char, *mut *const OrtOpAttr) -> OrtStatusPtr,
    _362: Gap<7>,
    pub ReleaseExternalInitializerInfo: unsafe extern "system" fn(*mut OrtExternalInitializerInfo),
    pub ExternalInitializerInfo_GetFilePath:
        unsafe extern "system" fn(*const OrtExternalInitializerInfo) -> *const os_char,
    pub ExternalInitializerInfo_GetFileOffset:
        unsafe extern "system" fn(*const OrtExternalInitializerInfo) -> i64,
    pub ExternalInitializerInfo_GetByteSize:
        unsafe extern "system" fn(*const OrtExternalInitializerInfo) -> usize,
    _373: Gap<6>,
    pub GetSessionOptionsConfigEntries:
        unsafe extern "system" fn(*const OrtSessionOptions, *mut *mut OrtKeyValuePairs) -> OrtStatusPtr,
}

/// Makes the kernel of a node; the first argument is what was given with the function.
pub(crate) type CreateKernel =
    unsafe extern "system" fn(*mut c_void, *const OrtKernelInfo, *mut *mut OrtKernelImpl) -> OrtStatusPtr;

/// `OrtEpApi` up to the last entry used.
#[repr(C)]
pub(crate) struct OrtEpApi {
    pub CreateEpDevice: unsafe extern "system" fn(
        *mut OrtEpFactory,
        *const OrtHardwareDevice,
        *const OrtKeyValuePairs,
        *const OrtKeyValuePairs,
        *mut *mut OrtEpDevice,
    ) -> OrtStatusPtr,
    _1: Gap<2>,
    pub EpGraphSupportInfo_AddSingleNode:
        unsafe extern "system" fn(*mut OrtEpGraphSupportInfo, *const OrtNode) -> OrtStatusPtr,
    _4: Gap<14>,
    pub CreateKernelRegistry: unsafe extern "system" fn(*mut *mut OrtKernelRegistry) -> OrtStatusPtr,
    pub ReleaseKernelRegistry: unsafe extern "system" fn(*mut OrtKernelRegistry),
    pub KernelRegistry_AddKernel: unsafe extern "system" fn(
        *mut OrtKernelRegistry,
        *const OrtKernelDef,
        CreateKernel,
        *mut c_void,
    ) -> OrtStatusPtr,
    pub CreateKernelDefBuilder: unsafe extern "system" fn(*mut *mut OrtKernelDefBuilder) -> OrtStatusPtr,
    pub ReleaseKernelDefBuilder: unsafe extern "system" fn(*mut OrtKernelDefBuilder),
    pub KernelDefBuilder_SetOperatorType:
        unsafe extern "system" fn(*mut OrtKernelDefBuilder, *const c_char) -> OrtStatusPtr,
    pub KernelDefBuilder_SetDomain:
        unsafe extern "system" fn(*mut OrtKernelDefBuilder, *const c_char) -> OrtStatusPtr,
    pub KernelDefBuilder_SetSinceVersion:
        unsafe extern "system" fn(*mut OrtKernelDefBuilder, c_int, c_int) -> OrtStatusPtr,
    pub KernelDefBuilder_SetExecutionProvider:
        unsafe extern "system" fn(*mut OrtKernelDefBuilder, *const c_char) -> OrtStatusPtr,
    _27: Gap<2>,
    pub KernelDefBuilder_AddTypeConstraint: unsafe extern "system" fn(
        *mut OrtKernelDefBuilder,
        *const c_char,
        *const *const OrtDataType,
        usize,
    ) -> OrtStatusPtr,
    _30: Gap<2>,
    pub KernelDefBuilder_Build:
        unsafe extern "system" fn(*mut OrtKernelDefBuilder, *mut *mut OrtKernelDef) -> OrtStatusPtr,
    pub ReleaseKernelDef: unsafe extern "system" fn(*mut OrtKernelDef),
    _34: Gap<6>,
    pub GetTensorDataType:
        unsafe extern "system" fn(ONNXTensorElementDataType, *mut *const OrtDataType) -> OrtStatusPtr,
    pub EpGraphSupportInfo_LookUpKernel: unsafe extern "system" fn(
        *mut OrtEpGraphSupportInfo,
        *const OrtNode,
        *mut *const OrtKernelDef,
    ) -> OrtStatusPtr,
}

/// What ONNX Runtime makes providers with.
#[repr(C)]
pub(crate) struct OrtEpFactory {
    pub ort_version_supported: u32,
    pub GetName: unsafe extern "system" fn(*const OrtEpFactory) -> *const c_char,
    pub GetVendor: unsafe extern "system" fn(*const OrtEpFactory) -> *const c_char,
    pub GetSupportedDevices: unsafe extern "system" fn(
        *mut OrtEpFactory,
        *const *const OrtHardwareDevice,
        usize,
        *mut *mut OrtEpDevice,
        usize,
        *mut usize,
    ) -> OrtStatusPtr,
    pub CreateEp: unsafe extern "system" fn(
        *mut OrtEpFactory,
        *const *const OrtHardwareDevice,
        *const *const OrtKeyValuePairs,
        usize,
        *const OrtSessionOptions,
        *const OrtLogger,
        *mut *mut OrtEp,
    ) -> OrtStatusPtr,
    pub ReleaseEp: unsafe extern "system" fn(*mut OrtEpFactory, *mut OrtEp),
    pub GetVendorId: unsafe extern "system" fn(*const OrtEpFactory) -> u32,
    pub GetVersion: unsafe extern "system" fn(*const OrtEpFactory) -> *const c_char,
    pub ValidateCompiledModelCompatibilityInfo: Option<unsafe extern "system" fn()>,
    pub CreateAllocator: unsafe extern "system" fn(
        *mut OrtEpFactory,
        *const OrtMemoryInfo,
        *const OrtKeyValuePairs,
        *mut *mut OrtAllocator,
    ) -> OrtStatusPtr,
    pub ReleaseAllocator: unsafe extern "system" fn(*mut OrtEpFactory, *mut OrtAllocator),
    pub CreateDataTransfer:
        unsafe extern "system" fn(*mut OrtEpFactory, *mut *mut OrtDataTransferImpl) -> OrtStatusPtr,
    pub IsStreamAware: unsafe extern "system" fn(*const OrtEpFactory) -> bool,
    pub _13: Gap<3>,
    pub GetNumCustomOpDomains: unsafe extern "system" fn(*mut OrtEpFactory, *mut usize) -> OrtStatusPtr,
    pub GetCustomOpDomains:
        unsafe extern "system" fn(*mut OrtEpFactory, *mut *mut OrtCustomOpDomain, usize) -> OrtStatusPtr,
    pub _18: Gap<3>,
}

/// One session's provider.
#[repr(C)]
pub(crate) struct OrtEp {
    pub ort_version_supported: u32,
    pub GetName: unsafe extern "system" fn(*const OrtEp) -> *const c_char,
    pub GetCapability:
        unsafe extern "system" fn(*mut OrtEp, *const OrtGraph, *mut OrtEpGraphSupportInfo) -> OrtStatusPtr,
    pub _3: Gap<5>,
    /// The second argument is the run's `OrtRunOptions`.
    pub OnRunStart: unsafe extern "system" fn(*mut OrtEp, *const c_void) -> OrtStatusPtr,
    pub _9: Gap<4>,
    pub GetKernelRegistry:
        unsafe extern "system" fn(*mut OrtEp, *mut *const OrtKernelRegistry) -> OrtStatusPtr,
    pub IsConcurrentRunSupported: unsafe extern "system" fn(*mut OrtEp, *mut bool) -> OrtStatusPtr,
    pub _15: Gap<7>,
    pub OnSessionInitializationEnd: unsafe extern "system" fn(*mut OrtEp) -> OrtStatusPtr,
    pub _23: Gap<3>,
}

/// One node's kernel.
#[repr(C)]
pub(crate) struct OrtKernelImpl {
    pub ort_version_supported: u32,
    pub flags: u32,
    pub Compute: unsafe extern "system" fn(*mut OrtKernelImpl, *mut OrtKernelContext) -> OrtStatusPtr,
    pub Release: unsafe extern "system" fn(*mut OrtKernelImpl),
    pub PrePackWeight: unsafe extern "system" fn(
        *mut OrtKernelImpl,
        *const OrtValue,
        c_int,
        *mut OrtAllocator,
        *mut OrtSharedPrePackedWeightCache,
        *mut bool,
    ) -> OrtStatusPtr,
    pub SetSharedPrePackedWeight: Option<unsafe extern "system" fn()>,
}

/// Gaps of a table that this library fills in.
pub(crate) const fn gap<const N: usize>() -> Gap<N> {
    [UNUSED; N]
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Offsets as a C compiler has them for the headers at level 30: the number of the entry times 8, behind the
    /// version where a struct starts with one.
    macro_rules! assert_entries {
        ($table:ty, $first:expr, $($number:literal $field:ident),* $(,)?) => {
            $( assert_eq!(
                offset_of!($table, $field),
                $first + 8 * $number,
                concat!(stringify!($table), "::", stringify!($field))
            ); )*
        };
    }

    #[test]
    fn api_entries_are_where_the_header_has_them() {
        assert_entries!(
            OrtApi24, 0,
            0 base, 289 GetValueInfoName, 290 GetValueInfoTypeInfo, 298 GetKeyValuePairs, 300 ReleaseKeyValuePairs,
            307 HardwareDevice_Type, 317 GetEpApi, 324 ValueInfo_GetValueNumConsumers,
            325 ValueInfo_GetValueConsumers, 326 ValueInfo_GetInitializerValue,
            327 ValueInfo_GetExternalInitializerInfo, 330 ValueInfo_IsGraphOutput,
            331 ValueInfo_IsConstantInitializer, 332 ValueInfo_IsFromOuterScope, 334 Graph_GetModelPath,
            344 Graph_GetNumNodes, 345 Graph_GetNodes, 346 Graph_GetParentNode, 350 Node_GetOperatorType,
            351 Node_GetDomain, 353 Node_GetNumInputs, 354 Node_GetInputs, 355 Node_GetNumOutputs, 361 Node_GetAttributeByName,
            369 ReleaseExternalInitializerInfo, 370 ExternalInitializerInfo_GetFilePath,
            371 ExternalInitializerInfo_GetFileOffset, 372 ExternalInitializerInfo_GetByteSize,
            379 GetSessionOptionsConfigEntries,
        );
    }

    #[test]
    fn ep_api_entries_are_where_the_header_has_them() {
        assert_entries!(
            OrtEpApi, 0,
            0 CreateEpDevice, 3 EpGraphSupportInfo_AddSingleNode, 18 CreateKernelRegistry, 19 ReleaseKernelRegistry,
            20 KernelRegistry_AddKernel, 21 CreateKernelDefBuilder, 22 ReleaseKernelDefBuilder,
            23 KernelDefBuilder_SetOperatorType, 24 KernelDefBuilder_SetDomain, 25 KernelDefBuilder_SetSinceVersion,
            26 KernelDefBuilder_SetExecutionProvider, 29 KernelDefBuilder_AddTypeConstraint,
            32 KernelDefBuilder_Build, 33 ReleaseKernelDef, 40 GetTensorDataType, 41 EpGraphSupportInfo_LookUpKernel,
        );
    }

    #[test]
    fn tables_that_are_filled_in_have_the_size_and_order_of_the_header() {
        assert_entries!(
            OrtEpFactory, 8,
            0 GetName, 1 GetVendor, 2 GetSupportedDevices, 3 CreateEp, 4 ReleaseEp, 5 GetVendorId, 6 GetVersion,
            7 ValidateCompiledModelCompatibilityInfo, 8 CreateAllocator, 9 ReleaseAllocator, 10 CreateDataTransfer,
            11 IsStreamAware, 15 GetNumCustomOpDomains, 16 GetCustomOpDomains,
        );
        assert_entries!(
            OrtEp, 8,
            0 GetName, 1 GetCapability, 7 OnRunStart, 12 GetKernelRegistry, 13 IsConcurrentRunSupported,
            21 OnSessionInitializationEnd,
        );
        assert_entries!(
            OrtKernelImpl, 8,
            0 Compute, 1 Release, 2 PrePackWeight, 3 SetSharedPrePackedWeight,
        );
        assert_eq!(
            (size_of::<OrtEpFactory>(), size_of::<OrtEp>(), size_of::<OrtKernelImpl>()),
            (168, 208, 40)
        );
    }
}
