//! The structs of `nz_cuda.h` are the same to C++ and to Rust.

use std::mem::{offset_of, size_of};

use nz_onnx::cuda::{
    BlockEntry, DecodeArguments, DeltaArguments, DeltaDecodeArguments, DeltaProductArguments,
    EncodeArguments, ProductArguments, WeightArguments,
};

macro_rules! numbers {
    ($type:ty: $($field:ident)*) => { [size_of::<$type>(), $(offset_of!($type, $field)),*] };
}

#[test]
fn structs_are_laid_out_alike() {
    let ours = [
        &numbers!(BlockEntry: first_slot offset record known m)[..],
        &numbers!(WeightArguments: blob blocks blob_len payload elements block_len blocks_per_tile tiers transform
            record_room tail_room tier_widths is_even symbols units units_of raw_bits element tile_width columns tile_slots
            books groups layer_offsets layer_starts layer_bits layers layer_at joined_at known_bits selectors),
        &numbers!(DecodeArguments: weight out status order first_block first_slot slots columns tile_width tiles
            indices index_count rows row_len index_size lean_blocks),
        &numbers!(ProductArguments: weight x y partial status k n m x_type is_rows chunk_segments block_chunks row_chunks row_reciprocal
            tile_width splits split_blocks c c_row_stride c_column_stride alpha beta items row_passes),
        &numbers!(DeltaArguments: base sizes block_len blocks_per_tile exponent is_difference room),
        &numbers!(DeltaDecodeArguments: decode delta element),
        &numbers!(DeltaProductArguments: product delta),
        &numbers!(EncodeArguments: source elements rows columns tile_columns element block_len blocks_per_tile is_tiled
            parts sampled_of counts transform kept no_subnormals tiers tier_widths places measured blocks payload status
            record_room),
        &[7848, 31_424],
    ];
    let ours: Vec<u64> = ours.concat().into_iter().map(|number| number as u64).collect();
    assert_eq!(ours, nz_cpp_twin::simt::layout());
}
