//! `nz_xxh3.hpp` against the crate xxhash-rust.

mod common;

use common::Rng;

/// Every length up to 2000, which has all five code paths, then the borders of the long one.
#[test]
fn same_hash_at_every_length() {
    let bytes = Rng(1).bytes(3_000_000);
    let large = [4095, 4096, 4097, 65_535, 65_536, 65_537, 1_048_576, 1_048_577, 2_999_937, 3_000_000];
    for n in (0..=2000).chain(large) {
        let expected = xxhash_rust::xxh3::xxh3_64(&bytes[..n]);
        assert_eq!(nz_cpp_twin::xxh3_64(&bytes[..n]), expected, "{n} bytes");
    }
}

/// No alignment is assumed, and all-zero and all-one input keep their carries.
#[test]
fn same_hash_at_any_alignment_and_of_extreme_bytes() {
    let random = Rng(2).bytes(5000);
    for start in 0..16 {
        let bytes = &random[start..start + 4000];
        assert_eq!(nz_cpp_twin::xxh3_64(bytes), xxhash_rust::xxh3::xxh3_64(bytes), "from {start}");
    }
    for fill in [0, 0xff] {
        let bytes = vec![fill; 5000];
        for n in (0..300).chain([1024, 1025, 5000]) {
            assert_eq!(
                nz_cpp_twin::xxh3_64(&bytes[..n]),
                xxhash_rust::xxh3::xxh3_64(&bytes[..n]),
                "{n} x {fill}"
            );
        }
    }
}
