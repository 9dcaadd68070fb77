//! Machine code for some devices, if the library was built with the feature `cubins` where there was an assembler: then the
//! driver need not compile the PTX, which takes it a while for each process.

/// A module's name, the compute capability that it was assembled for, and the code.
type Cubin = (&'static str, (i32, i32), &'static [u8]);

#[cfg(feature = "cubins")]
const CUBINS: &[Cubin] = include!(concat!(env!("OUT_DIR"), "/cubins.rs"));
#[cfg(not(feature = "cubins"))]
const CUBINS: &[Cubin] = &[];

/// The machine code of `module` that a device of this compute capability runs.
pub(super) fn code_for(module: &str, capability: (i32, i32)) -> Option<&'static [u8]> {
    best(CUBINS, module, capability)
}

/// A device runs code of its own major capability and the same or a lesser minor one: the greatest is best.
fn best(cubins: &[Cubin], module: &str, (major, minor): (i32, i32)) -> Option<&'static [u8]> {
    let fits = |&&(name, made_for, _): &&Cubin| name == module && made_for.0 == major && made_for.1 <= minor;
    cubins.iter().filter(fits).max_by_key(|cubin| cubin.1).map(|cubin| cubin.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_get_code_of_their_major_capability() {
        let cubins: [Cubin; 5] = [
            ("a", (7, 5), b"75"),
            ("a", (8, 0), b"80"),
            ("a", (8, 6), b"86"),
            ("b", (8, 0), b"b80"),
            ("a", (9, 0), b"90"),
        ];
        for (capability, expected) in [
            ((7, 0), None),
            ((7, 5), Some("75")),
            ((8, 0), Some("80")),
            ((8, 6), Some("86")),
            ((8, 9), Some("86")),
            ((9, 0), Some("90")),
            ((10, 0), None),
            ((12, 0), None),
        ] {
            assert_eq!(best(&cubins, "a", capability), expected.map(str::as_bytes), "{capability:?}");
        }
        assert_eq!(best(&cubins, "b", (8, 9)), Some(&b"b80"[..]));
        assert_eq!(best(&cubins, "c", (8, 0)), None);
    }

    /// All modules for all architectures, or none where there was no assembler. `NZ_PTXAS`, if set, says that there was.
    #[cfg(feature = "cubins")]
    #[test]
    fn cubins_are_machine_code_with_all_kernels() {
        use crate::cuda::job::Kernel;

        if CUBINS.is_empty() {
            assert!(std::env::var_os("NZ_PTXAS").is_none(), "there was an assembler, and it was not used");
            eprintln!("SKIPPED: there was no ptxas when this was built; NZ_PTXAS names one");
            return;
        }
        for capability in [(7, 5), (8, 0), (9, 0)] {
            let mut found = 0;
            for &(_, made_for, code) in CUBINS.iter().filter(|cubin| cubin.1 == capability) {
                assert_eq!(code[..4], *b"\x7fELF");
                assert_eq!(u16::from_le_bytes([code[18], code[19]]), 190, "a machine of CUDA's");
                let has = |name: &str| code.windows(name.len()).any(|bytes| bytes == name.as_bytes());
                found +=
                    Kernel::ALL.iter().filter(|kernel| has(&format!(".text.{}\0", kernel.name()))).count();
                assert_eq!(code_for(CUBINS[0].0, made_for).map(|code| &code[..4]), Some(&b"\x7fELF"[..]));
            }
            // Those with tensor cores are not for the first.
            let without = Kernel::ALL.iter().filter(|kernel| kernel.name().starts_with("nz_tensor_")).count();
            let expected = Kernel::ALL.len() - if capability < (8, 0) { without } else { 0 };
            assert_eq!(found, expected, "{capability:?}");
        }
    }
}
