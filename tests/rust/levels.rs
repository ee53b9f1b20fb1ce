//! Every primitive and every kernel gives the same bits at every level as at the scalar one.

use proptest::prelude::*;
use quantize::kernels::convert::{Half, Narrow, Widen};
use quantize::kernels::nibbles::{OFFSET, Pack, SIGNED, UNSIGNED, Unpack};
use quantize::kernels::scales::{bf16_bits, round_to};
use quantize::kernels::stream::Stream;
use quantize::level::Level;
use quantize::simd::{Kernel, Simd};
use quantize::spec::ScaleDtype;

/// Every bit pattern that arithmetic treats in its own way, and ordinary numbers.
fn float() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1e3f32..1e3,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => (-40i32..40).prop_map(|halves| halves as f32 / 2.0),
        1 => prop::sample::select(vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-40, -1e-45, 65504.0, 65520.0, 5.96e-8]),
    ]
}

fn vector() -> impl Strategy<Value = [f32; 16]> {
    prop::array::uniform16(float())
}

/// All primitives on the same operands, as bits; a NaN counts as one value, since its payload has no meaning.
struct Primitives {
    a: [f32; 16],
    b: [f32; 16],
    integers: [i32; 16],
}

impl Kernel for Primitives {
    type Output = Vec<(&'static str, Vec<u32>)>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let bits = |x: f32| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() };
        let floats = |v: S::F32| {
            let mut out = [0.0; 16];
            simd.store(v, &mut out);
            out.map(bits).to_vec()
        };
        let integers = |v: S::I32| {
            let mut out = [0; 16];
            simd.store_i32(v, &mut out);
            out.map(i32::cast_unsigned).to_vec()
        };
        let (a, b) = (simd.load(&self.a), simd.load(&self.b));
        let (i, j) = (simd.load_i32(&self.integers), simd.bits(b));
        // Conversions to integers are defined within their range only.
        let small = simd.load(&self.a.map(|x| if x.abs() < 1e9 { x } else { 0.0 }));
        let mut halves = [0; 16];
        simd.store_f16(a, &mut halves);
        let numbers = self.a.iter().zip(&halves).filter(|(x, _)| !x.is_nan()).map(|(_, &half)| u32::from(half));
        let mut results = vec![
            ("splat", floats(simd.splat(self.a[0]))),
            ("splat_i32", integers(simd.splat_i32(self.integers[0]))),
            ("add", floats(simd.add(a, b))),
            ("sub", floats(simd.sub(a, b))),
            ("mul", floats(simd.mul(a, b))),
            ("div", floats(simd.div(a, b))),
            ("sqrt", floats(simd.sqrt(a))),
            ("less", integers(simd.less(a, b))),
            ("equal", integers(simd.equal(a, b))),
            ("select", floats(simd.select(simd.less(a, b), a, b))),
            ("which", vec![simd.which(simd.less(a, b))]),
            ("any", vec![u32::from(simd.any(simd.less(a, b)))]),
            ("add_i32", integers(simd.add_i32(i, j))),
            ("and", integers(simd.and(i, j))),
            ("or", integers(simd.or(i, j))),
            ("xor", integers(simd.xor(i, j))),
            ("max_i32", integers(simd.max_i32(i, j))),
            ("min_i32", integers(simd.min_i32(i, j))),
            ("max_u32", integers(simd.max_u32(i, j))),
            ("shift_left", integers(simd.shift_left(i, 5))),
            ("shift_right", integers(simd.shift_right(i, 7))),
            ("bits", integers(simd.bits(simd.as_f32(i)))),
            ("round", integers(simd.round(small))),
            ("truncate", integers(simd.truncate(small))),
            ("to_f32", floats(simd.to_f32(i))),
            ("look_up", floats(simd.look_up(a, i))),
            ("store_f16", numbers.collect()),
            ("load_f16", floats(simd.load_f16(&halves))),
            ("round_to f16", floats(round_to(simd, a, ScaleDtype::F16))),
            ("round_to bf16", floats(round_to(simd, a, ScaleDtype::Bf16))),
            ("bf16_bits", integers(simd.and(bf16_bits(simd, a), simd.splat_i32(0xffff)))),
        ];
        let words = self.integers.map(|i| i as u16);
        let mut low = [0; 16];
        simd.store_u16(i, &mut low);
        results.push(("load_u16", integers(simd.load_u16(&words))));
        results.push(("store_u16", low.map(u32::from).to_vec()));
        let many: [S::I32; 16] = std::array::from_fn(|n| simd.load_i32(&self.integers.map(|i| i.rotate_left(n as u32 * 3))));
        results.push(("max_of_each", integers(simd.max_of_each(&many.map(|v| simd.fold_max(v))))));
        for column in simd.transpose(&many.map(|v| simd.as_f32(v))) {
            results.push(("transpose", integers(simd.bits(column))));
        }
        for run in [1, 2, 4, 8, 16] {
            results.push(("max_of_runs", integers(simd.max_of_runs(i, run))));
        }
        let codes: [S::I32; 8] = std::array::from_fn(|n| simd.load_i32(&self.integers.map(|i| (i >> (n + 20)) % 40)));
        let (mut pairs, mut packed_halves) = ([0; 64], [0; 64]);
        simd.pack_pairs(&codes, &mut pairs);
        simd.pack_halves(&codes, &mut packed_halves);
        results.push(("pack_pairs", pairs.map(u32::from).to_vec()));
        results.push(("pack_halves", packed_halves.map(u32::from).to_vec()));
        let mut looked_up = [0.0; 112];
        simd.look_up_pairs(a, &pairs[..56], &mut looked_up);
        results.push(("look_up_pairs", looked_up.map(bits).to_vec()));
        simd.look_up_halves(a, &pairs[..48], &mut looked_up[..96]);
        results.push(("look_up_halves", looked_up.map(bits).to_vec()));
        let mut steps = self.b.map(|x| if x.is_nan() { 0.0 } else { x });
        steps[..15].sort_by(f32::total_cmp);
        results.push(("rank", integers(simd.rank(a, simd.load(&steps)))));
        let words = |words: &[[u8; 2]]| words.iter().map(|&word| u32::from(u16::from_le_bytes(word))).collect();
        let mut looked_up = [[0; 2]; 112];
        simd.look_up_u16(i, simd.load_i32(&self.integers.map(|i| i >> 9)), looked_up.first_chunk_mut().unwrap());
        results.push(("look_up_u16", words(&looked_up[..16])));
        simd.look_up_pairs_u16(i, &pairs[..56], &mut looked_up);
        results.push(("look_up_pairs_u16", words(&looked_up)));
        simd.look_up_halves_u16(i, &pairs[..48], &mut looked_up[..96]);
        results.push(("look_up_halves_u16", words(&looked_up[..96])));
        let fifteen = simd.splat_i32(15);
        results.push(("unpack_pairs", integers(simd.and(simd.unpack_pairs(pairs[8..].first_chunk().unwrap()), fifteen))));
        for half in simd.unpack_halves(pairs[16..].first_chunk().unwrap()) {
            results.push(("unpack_halves", integers(simd.and(half, fifteen))));
        }
        results
    }
}

proptest! {
    #[test]
    fn primitives(a in vector(), b in vector(), integers in prop::array::uniform16(any::<i32>())) {
        let results = |level: Level| level.run(Primitives { a, b, integers });
        let expected = results(Level::named("scalar").unwrap());
        for level in Level::available() {
            for (expected, result) in expected.iter().zip(results(level)) {
                prop_assert_eq!(expected, &result, "{}", level.name());
            }
        }
    }

    #[test]
    fn codes_to_nibbles(codes in prop::collection::vec(-9i8..9, 0..400), signed: bool) {
        let bias = if signed { 8 } else { 0 };
        let bytes: Vec<u8> = codes.iter().map(|code| code.cast_unsigned()).collect();
        let expected = codes.chunks(2).map(|pair| pair[0] as u8 & 15 | (pair.get(1).copied().unwrap_or(0) as u8) << 4).collect::<Vec<_>>();
        let valid = if signed { -8..8 } else { 0..16 };
        for level in Level::available() {
            let mut packed = vec![0xaa; codes.len().div_ceil(2)];
            let in_range = level.run(Pack { codes: &bytes, bias, packed: &mut packed });
            prop_assert_eq!(in_range, codes.iter().all(|code| valid.contains(code)), "{}", level.name());
            prop_assert_eq!(&packed, &expected, "{}", level.name());
        }
    }

    #[test]
    fn nibbles_to_codes(packed in prop::collection::vec(any::<u8>(), 0..300), odd: bool) {
        let count = (2 * packed.len()).saturating_sub(usize::from(odd));
        for table in [SIGNED, OFFSET, UNSIGNED] {
            let expected: Vec<u8> = (0..count).map(|i| table[usize::from(packed[i / 2] >> (i % 2 * 4) & 15)].cast_unsigned()).collect();
            for level in Level::available() {
                let mut codes = vec![0xaa; count];
                level.run(Unpack { packed: &packed, table: &table.map(i8::cast_unsigned), codes: &mut codes });
                prop_assert_eq!(&codes, &expected, "{}", level.name());
            }
        }
    }

    #[test]
    fn halves(x in prop::collection::vec(float().prop_filter("a number", |x| !x.is_nan()), 0..100)) {
        for half in [Half::F16, Half::Bf16] {
            let narrow = |x: f32| match half { Half::F16 => half::f16::from_f32(x).to_le_bytes(), Half::Bf16 => half::bf16::from_f32(x).to_le_bytes() };
            let widen = |b: [u8; 2]| match half { Half::F16 => half::f16::from_le_bytes(b).to_f32(), Half::Bf16 => half::bf16::from_le_bytes(b).to_f32() };
            let expected: Vec<[u8; 2]> = x.iter().map(|&x| narrow(x)).collect();
            for level in Level::available() {
                let mut narrowed = vec![[0xaa; 2]; x.len()];
                level.run(Narrow { x: &x, half, halves: &mut narrowed });
                prop_assert_eq!(&narrowed, &expected, "{:?} {}", half, level.name());
                let mut widened = vec![1.0; x.len()];
                level.run(Widen { halves: &narrowed, half, x: &mut widened });
                let bits = |x: f32| x.to_bits();
                prop_assert!(widened.iter().copied().map(bits).eq(expected.iter().map(|&b| bits(widen(b)))), "{:?} {}", half, level.name());
            }
        }
    }

    #[test]
    fn streams(bytes in prop::collection::vec(any::<u8>(), 0..500), offset in 0usize..70) {
        for level in Level::available() {
            let mut memory = vec![0; offset + bytes.len() + 64];
            level.run(Stream { from: &bytes, to: &mut memory[offset..offset + bytes.len()] });
            prop_assert_eq!(&memory[offset..offset + bytes.len()], &bytes[..]);
            prop_assert!(memory[..offset].iter().chain(&memory[offset + bytes.len()..]).all(|&byte| byte == 0));
        }
    }
}

#[test]
fn names_lead_back() {
    for level in Level::available() {
        assert_eq!(Level::named(level.name()).map(Level::name), Some(level.name()));
    }
    assert!(Level::named("mmx").is_none());
}
