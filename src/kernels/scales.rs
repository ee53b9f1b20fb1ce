//! Scales, zero points and minimums in memory: 16 groups at a time, in the dtype that stores them.

use crate::simd::{Kernel, LANES, Simd};
use crate::spec::ScaleDtype;
use bytemuck::cast;

/// Round to `dtype`, half to even; beyond its largest number it becomes infinite.
#[inline(always)]
pub fn round_to<S: Simd>(simd: S, v: S::F32, dtype: ScaleDtype) -> S::F32 {
    match dtype {
        ScaleDtype::F16 => {
            let mut halves = [0; 16];
            simd.store_f16(v, &mut halves);
            simd.load_f16(&halves)
        }
        ScaleDtype::Bf16 => simd.as_f32(simd.shift_left(bf16_bits(simd, v), 16)),
        // What is stored in a byte is made by the rule of its format, which knows how to round it.
        ScaleDtype::F32 | ScaleDtype::E8m0 | ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => v,
    }
}

/// The bits of each lane rounded to bfloat16, half to even; NaN stays NaN.
#[inline(always)]
pub fn bf16_bits<S: Simd>(simd: S, v: S::F32) -> S::I32 {
    let bits = simd.bits(v);
    let upper = simd.shift_right(bits, 16);
    let odd = simd.and(upper, simd.splat_i32(1));
    let rounded = simd.shift_right(simd.add_i32(bits, simd.add_i32(odd, simd.splat_i32(0x7fff))), 16);
    // The carry could turn a NaN into infinity or zero: keep its upper half, made quiet.
    let quiet = simd.or(upper, simd.splat_i32(0x40));
    let finite = simd.equal(v, v);
    simd.bits(simd.select(finite, simd.as_f32(rounded), simd.as_f32(quiet)))
}

/// Write every `run`-th lane, as many as `out` holds, as little-endian numbers of `dtype`.
#[inline(always)]
pub fn store<S: Simd>(simd: S, v: S::F32, dtype: ScaleDtype, run: usize, out: &mut [u8]) {
    match dtype {
        ScaleDtype::F32 => {
            let mut lanes = [0.0; 16];
            simd.store(v, &mut lanes);
            for (bytes, lane) in out.as_chunks_mut::<4>().0.iter_mut().zip(lanes.iter().step_by(run)) {
                *bytes = lane.to_le_bytes();
            }
        }
        ScaleDtype::E8m0 => {
            // The exponent field is the byte; 2^-127 is subnormal and has field 0.
            store_bytes(simd, simd.shift_right(simd.bits(v), 23), run, out);
        }
        ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => store_bytes(simd, e4m3_bytes(simd, v), run, out),
        ScaleDtype::F16 | ScaleDtype::Bf16 => {
            let mut lanes = [0; 16];
            if dtype == ScaleDtype::F16 {
                simd.store_f16(v, &mut lanes);
            } else {
                simd.store_u16(bf16_bits(simd, v), &mut lanes);
            }
            // At once where all of them are wanted; a loop over two bytes each took a tenth of an encoder's time.
            if run == 1
                && let Some(all) = out.first_chunk_mut::<32>()
            {
                *all = cast(lanes.map(u16::to_le));
                return;
            }
            for (bytes, lane) in out.as_chunks_mut::<2>().0.iter_mut().zip(lanes.iter().step_by(run)) {
                *bytes = lane.to_le_bytes();
            }
        }
    }
}

/// The low bytes of every `run`-th lane, at once where all of them are wanted.
#[inline(always)]
fn store_bytes<S: Simd>(simd: S, v: S::I32, run: usize, out: &mut [u8]) {
    if run == 1
        && let Some(all) = out.first_chunk_mut()
    {
        return simd.store_u8(v, all);
    }
    let mut bytes = [0; LANES];
    simd.store_u8(v, &mut bytes);
    for (byte, &lane) in out.iter_mut().zip(bytes.iter().step_by(run)) {
        *byte = lane;
    }
}

/// Up to 16 little-endian numbers of `dtype`; the lanes beyond them are 0.
#[inline(always)]
pub fn load<S: Simd>(simd: S, dtype: ScaleDtype, bytes: &[u8]) -> S::F32 {
    match dtype {
        ScaleDtype::F32 => {
            let mut lanes = [0.0; 16];
            for (lane, bytes) in lanes.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *lane = f32::from_le_bytes(*bytes);
            }
            simd.load(&lanes)
        }
        ScaleDtype::E8m0 => {
            let mut lanes = [0; 16];
            for (lane, &byte) in lanes.iter_mut().zip(bytes) {
                *lane = exponent(byte).to_bits().cast_signed();
            }
            simd.as_f32(simd.load_i32(&lanes))
        }
        ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => {
            let mut lanes = [0; LANES];
            let count = bytes.len().min(LANES);
            lanes[..count].copy_from_slice(&bytes[..count]);
            load_e4m3(simd, &lanes)
        }
        ScaleDtype::F16 | ScaleDtype::Bf16 => {
            let mut lanes = [0; 16];
            if let Some(all) = bytes.first_chunk::<32>() {
                lanes = cast::<_, [u16; LANES]>(*all).map(u16::from_le);
            } else {
                for (lane, bytes) in lanes.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *lane = u16::from_le_bytes(*bytes);
                }
            }
            if dtype == ScaleDtype::F16 { simd.load_f16(&lanes) } else { simd.as_f32(simd.shift_left(simd.load_u16(&lanes), 16)) }
        }
    }
}

/// 2^(byte - 127); 255 is NaN.
#[inline(always)]
pub fn exponent(byte: u8) -> f32 {
    f32::from_bits(match byte {
        0 => 0x0040_0000,
        255 => 0x7fc0_0000,
        byte => u32::from(byte) << 23,
    })
}

/// What the exponent and mantissa of an 8-bit float are less than the upper bits of the same f32: (127 - 7) << 3.
const E4M3_BIAS: i32 = 120 << 3;

/// Below it 8-bit floats are subnormal, in steps of 2^-9.
const E4M3_NORMAL: f32 = 1.0 / 64.0;

/// 16 8-bit floats; 0x7f and 0xff are NaN.
#[inline(always)]
fn load_e4m3<S: Simd>(simd: S, bytes: &[u8; LANES]) -> S::F32 {
    let bytes = simd.load_i32(&bytes.map(i32::from));
    let number = e4m3_magnitudes(simd, simd.and(bytes, simd.splat_i32(0x7f)));
    let number = simd.select(simd.equal(number, simd.splat(480.0)), simd.splat(f32::NAN), number);
    simd.as_f32(simd.or(simd.bits(number), simd.shift_left(simd.and(bytes, simd.splat_i32(0x80)), 24)))
}

/// The numbers of 0..=0x7f; 0x7f is 480.
///
/// No operation sees a subnormal f32, on which processors may spend a hundred times as long.
#[inline(always)]
pub fn e4m3_magnitudes<S: Simd>(simd: S, bytes: S::I32) -> S::F32 {
    let count = simd.to_f32(bytes);
    let normal = simd.as_f32(simd.shift_left(simd.add_i32(bytes, simd.splat_i32(E4M3_BIAS)), 20));
    simd.select(simd.less(count, simd.splat(8.0)), simd.mul(count, simd.splat(1.0 / 512.0)), normal)
}

/// The bytes of numbers that are 8-bit floats.
#[inline(always)]
fn e4m3_bytes<S: Simd>(simd: S, v: S::F32) -> S::I32 {
    let bits = simd.bits(v);
    let magnitude = simd.as_f32(simd.and(bits, simd.splat_i32(i32::MAX)));
    let small = simd.as_f32(simd.round(simd.mul(magnitude, simd.splat(512.0))));
    let normal = simd.as_f32(simd.add_i32(simd.shift_right(simd.bits(magnitude), 20), simd.splat_i32(-E4M3_BIAS)));
    let byte = simd.select(simd.less(magnitude, simd.splat(E4M3_NORMAL)), small, normal);
    let byte = simd.select(simd.equal(v, v), byte, simd.as_f32(simd.splat_i32(0x7f)));
    simd.or(simd.bits(byte), simd.and(simd.shift_right(bits, 24), simd.splat_i32(0x80)))
}

/// The number of an 8-bit float; 0x7f and 0xff are NaN.
#[inline(always)]
pub fn e4m3(byte: u8) -> f32 {
    let magnitude = match byte & 0x7f {
        0x7f => f32::NAN,
        count @ 0..8 => f32::from(count) / 512.0,
        normal => f32::from_bits((u32::from(normal) + E4M3_BIAS as u32) << 20),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest 8-bit float to a number from 0 to 448, half to even.
#[inline(always)]
pub fn round_to_e4m3<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    let bits = simd.bits(v);
    let odd = simd.and(simd.shift_right(bits, 20), simd.splat_i32(1));
    let rounded = simd.add_i32(bits, simd.add_i32(odd, simd.splat_i32(0x7_ffff)));
    let normal = simd.as_f32(simd.and(rounded, simd.splat_i32(!0xf_ffff)));
    // Below 2^-6 the steps are of 2^-9.
    let small = simd.mul(simd.to_f32(simd.round(simd.mul(v, simd.splat(512.0)))), simd.splat(1.0 / 512.0));
    simd.select(simd.less(v, simd.splat(E4M3_NORMAL)), small, normal)
}

/// The byte of the greatest 8-bit float that is not above a number of 0 or more; 448 beyond it.
#[inline(always)]
pub fn floor_to_e4m3<S: Simd>(simd: S, v: S::F32) -> S::I32 {
    let small = simd.truncate(simd.mul(simd.select(simd.less(v, simd.splat(1.0)), v, simd.splat(1.0)), simd.splat(512.0)));
    let normal = simd.add_i32(simd.shift_right(simd.bits(v), 20), simd.splat_i32(-E4M3_BIAS));
    let byte = simd.as_f32(simd.min_i32(normal, simd.splat_i32(0x7e)));
    simd.bits(simd.select(simd.less(v, simd.splat(E4M3_NORMAL)), simd.as_f32(small), byte))
}

/// The byte of a number that is one of those of an 8-bit float.
#[inline(always)]
pub fn e4m3_bits(value: f32) -> u8 {
    let magnitude = value.abs();
    let byte = if value.is_nan() {
        0x7f
    } else if magnitude < E4M3_NORMAL {
        (magnitude * 512.0) as u32
    } else {
        (magnitude.to_bits() >> 20) - E4M3_BIAS as u32
    };
    (value.to_bits() >> 24) as u8 & 0x80 | byte as u8 & 0x7f
}

/// Up to 16 values, and zeros after them. Sixteen are copied at once; a copy of any length is a call.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; LANES] {
    if let Some(all) = values.first_chunk() {
        return *all;
    }
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// As many lanes as `values` holds, up to all.
#[inline(always)]
fn store_some<S: Simd>(simd: S, v: S::F32, values: &mut [f32]) {
    if let Some(all) = values.first_chunk_mut() {
        return simd.store(v, all);
    }
    let mut lanes = [0.0; LANES];
    simd.store(v, &mut lanes);
    values.copy_from_slice(&lanes[..values.len()]);
}

/// Values to memory, as many as both sides hold.
pub struct Store<'a> {
    /// One value a group.
    pub values: &'a [f32],
    /// The dtype in memory.
    pub dtype: ScaleDtype,
    /// Little-endian numbers of that dtype.
    pub bytes: &'a mut [u8],
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let size = LANES * self.dtype.size();
        for (values, bytes) in self.values.chunks(LANES).zip(self.bytes.chunks_mut(size)) {
            store(simd, simd.load(&padded(values)), self.dtype, 1, bytes);
        }
    }
}

/// Values from memory.
pub struct Load<'a> {
    /// Little-endian numbers of `dtype`.
    pub bytes: &'a [u8],
    /// The dtype in memory.
    pub dtype: ScaleDtype,
    /// One value a group.
    pub values: &'a mut [f32],
}

impl Kernel for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let size = LANES * self.dtype.size();
        for (values, bytes) in self.values.chunks_mut(LANES).zip(self.bytes.chunks(size)) {
            store_some(simd, load(simd, self.dtype, bytes), values);
        }
    }
}

/// The zero points that say the same as minimums: zero_point = -minimum / scale, where the scale is 0 any.
pub struct FromMinimums<'a> {
    /// One a group.
    pub scales: &'a [f32],
    /// One a group.
    pub minimums: &'a [f32],
    /// The zero point of a group with scale 0.
    pub any: f32,
    /// One a group, to be written.
    pub zero_points: &'a mut [f32],
}

impl Kernel for FromMinimums<'_> {
    /// Whether -zero_point * scale is the minimum again for all of them.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let (zero, any) = (simd.splat(0.0), simd.splat(self.any));
        let mut differ = simd.splat_i32(0);
        let groups = self.scales.chunks(LANES).zip(self.minimums.chunks(LANES));
        for ((scales, minimums), zero_points) in groups.zip(self.zero_points.chunks_mut(LANES)) {
            // Lanes without a group have scale and minimum 0, which agree.
            let (scale, minimum) = (simd.load(&padded(scales)), simd.load(&padded(minimums)));
            let quotient = simd.div(simd.sub(zero, minimum), scale);
            let zero_point = simd.select(simd.equal(scale, zero), any, quotient);
            let back = simd.equal(simd.mul(simd.sub(zero, zero_point), scale), minimum);
            differ = simd.or(differ, simd.xor(back, simd.splat_i32(-1)));
            store_some(simd, zero_point, zero_points);
        }
        !simd.any(differ)
    }
}

/// Whether all values are numbers that can be stored.
pub struct Hold<'a> {
    /// The values.
    pub values: &'a [f32],
    /// What stores them.
    pub by: Storage,
}

/// What stores numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage {
    /// Finite numbers of a dtype of floats of two bytes or four.
    Floats(ScaleDtype),
    /// Integers from one to another.
    Integers(u8, u8),
}

impl Kernel for Hold<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let mut all = simd.splat_i32(-1);
        let (vectors, rest) = self.values.as_chunks::<LANES>();
        for vector in vectors {
            all = simd.and(all, are_held(simd, simd.load(vector), self.by));
        }
        if let Some(&first) = rest.first() {
            let mut last = [first; LANES];
            last[..rest.len()].copy_from_slice(rest);
            all = simd.and(all, are_held(simd, simd.load(&last), self.by));
        }
        !simd.any(simd.xor(all, simd.splat_i32(-1)))
    }
}

#[inline(always)]
fn are_held<S: Simd>(simd: S, v: S::F32, by: Storage) -> S::I32 {
    match by {
        Storage::Floats(dtype) => {
            let magnitude = simd.as_f32(simd.and(simd.bits(v), simd.splat_i32(i32::MAX)));
            simd.and(simd.less(magnitude, simd.splat(f32::INFINITY)), simd.equal(round_to(simd, v, dtype), v))
        }
        Storage::Integers(low, high) => {
            let (below, above) = (simd.splat(f32::from(low) - 1.0), simd.splat(f32::from(high) + 1.0));
            let is_between = simd.and(simd.less(below, v), simd.less(v, above));
            simd.and(is_between, simd.equal(simd.to_f32(simd.round(v)), v))
        }
    }
}
