// The transcendental functions of the mask language on the CPU: how each is computed without branches and without a
// call to the C library, so that loops vectorise and every build gives the same bits. Included by Operations.h; under
// NVRTC CUDA's own functions, also within 2 ulp, take their place.
//
// Errors are below 2 ulp of f32 everywhere, subnormal results included. exp, exp2 and tanh are computed in f32;
// the others, which are rarer, in f64, where a short series is enough. Nothing is contracted.
#pragma once

namespace cpflex::ops {

static inline float bitsToFloat(unsigned bits) { return __builtin_bit_cast(float, bits); }
static inline unsigned floatToBits(float value) { return __builtin_bit_cast(unsigned, value); }
static inline double bitsToDouble(unsigned long long bits) { return __builtin_bit_cast(double, bits); }
static inline unsigned long long doubleToBits(double value) { return __builtin_bit_cast(unsigned long long, value); }

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kNaN = __builtin_nanf("");

/// value * 2^exponent for exponent in [-250, 250], rounded once: the first factor leaves a normal number.
static inline float scaleByPowerOfTwo(float value, int exponent) {
  int half = exponent >> 1;
  float first = bitsToFloat((unsigned)(half + 127) << 23);
  float second = bitsToFloat((unsigned)(exponent - half + 127) << 23);
  return value * first * second;
}

/// Adding it rounds a small f32 to the nearest whole number and leaves that number in the low bits.
inline constexpr float kRoundFloat = 0x1.8p23f;
inline constexpr double kRoundDouble = 0x1.8p52;

static inline int wholeBits(float rounded) { return (int)(floatToBits(rounded) - floatToBits(kRoundFloat)); }

static inline float exp(float x) {
  // 1. Beyond these bounds the result is 0 or infinite; a NaN stays.
  float a = x > 89.0f ? 89.0f : x;
  a = a < -104.5f ? -104.5f : a;
  // 2. x = n ln2 + r with |r| <= ln2 / 2; the first part of ln2 has few bits, so that its product with n is exact.
  float rounded = a * 1.44269504f + kRoundFloat;
  float n = rounded - kRoundFloat;
  float r = (a - n * 0.693359375f) - n * -2.12194440e-4f;
  // 3. e^r = 1 + r + r^2 P(r), P minimax.
  float p = 0.00139013492f;
  p = p * r + 0.0083633f;
  p = p * r + 0.0416668542f;
  p = p * r + 0.166665763f;
  p = p * r + 0.5f;
  float power = (p * (r * r) + r) + 1.0f;
  // A NaN has no n; the product below stays NaN for any.
  int exponent = a == a ? wholeBits(rounded) : 0;
  return scaleByPowerOfTwo(power, exponent);
}

static inline float exp2(float x) {
  float a = x > 129.0f ? 129.0f : x;
  a = a < -151.0f ? -151.0f : a;
  float rounded = a + kRoundFloat;
  float r = a - (rounded - kRoundFloat);
  // 2^r = 1 + r P(r), P minimax on [-1/2, 1/2].
  float p = 1.54035108e-4f;
  p = p * r + 0.00133909646f;
  p = p * r + 0.00961823855f;
  p = p * r + 0.0555035695f;
  p = p * r + 0.240226492f;
  p = p * r + 0.693147182f;
  int exponent = a == a ? wholeBits(rounded) : 0;
  return scaleByPowerOfTwo(p * r + 1.0f, exponent);
}

static inline float tanh(float x) {
  float a = bitsToFloat(floatToBits(x) & 0x7fffffffu);
  // |x| < 0.625: x + x^3 P(x^2), P minimax.
  float z = a * a;
  float p = 0.00229263981f;
  p = p * z + -0.00834386051f;
  p = p * z + 0.0217688959f;
  p = p * z + -0.0539592579f;
  p = p * z + 0.133333042f;
  p = p * z + -0.333333343f;
  float small = (p * z) * a + a;
  // Otherwise 1 - 2 / (e^2|x| + 1), which is 1 from 10 on.
  float clamped = a > 10.0f ? 10.0f : a;
  float large = 1.0f - 2.0f / (exp(clamped + clamped) + 1.0f);
  float magnitude = a < 0.625f ? small : large;
  return bitsToFloat(floatToBits(magnitude) | (floatToBits(x) & 0x80000000u));
}

static inline float sigmoid(float x) {
  // e^-|x| never overflows; for x < 0 the result is e^x / (1 + e^x). In f64, so that the error is that of exp.
  float e = exp(bitsToFloat(floatToBits(x) | 0x80000000u));
  return (float)((double)(x < 0.0f ? e : 1.0f) / (1.0 + (double)e));
}

/// The natural logarithm of a positive finite f64 in [2^-1000, 2^1000], within 2^-40.
static inline double logOfNormal(double x) {
  // 1. x = m 2^e with m in [sqrt(1/2), sqrt(2)).
  unsigned long long bits = doubleToBits(x);
  unsigned long long shifted = bits - 0x3fe6a09e667f3bcdull; // sqrt(1/2)
  // The exponent as an f64: an addition that leaves it in the low bits, as f64 from i64 is slow in vectors.
  unsigned long long e = (unsigned long long)((long long)shifted >> 52);
  double exponent = bitsToDouble((e + 2048) | 0x4330000000000000ull) - (0x1p52 + 2048.0);
  double m = bitsToDouble(bits - (e << 52));
  // 2. log m = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1), |s| <= 0.172.
  double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  return exponent * 0.69314718055994530942 + 2.0 * (s + s * z * p);
}

/// log where x is known as an f64 and its special values as an f32.
static inline float logSpecialValues(float x, double logarithm) {
  float result = x == kInfinity ? x : (float)logarithm;
  result = x == 0.0f ? -kInfinity : result;
  return x < 0.0f || x != x ? kNaN : result;
}

static inline float log(float x) {
  bool isOrdinary = x > 0.0f && x < kInfinity;
  return logSpecialValues(x, logOfNormal(isOrdinary ? (double)x : 1.0));
}

static inline float log1p(float x) {
  // 1 + x is exact in f64 but for small x, where log(1 + x) is x.
  double sum = 1.0 + (double)x;
  bool isOrdinary = x > -1.0f && x < kInfinity;
  bool isSmall = x < 0x1p-26f && x > -0x1p-26f;
  double logarithm = logOfNormal(isOrdinary ? sum : 1.0);
  float result = logSpecialValues(x == kInfinity ? x : (float)sum, logarithm);
  return isSmall ? x : result;
}

static inline float pow(float a, float b) {
  // 1. |a|^b = 2^(b log2 |a|), in f64.
  float magnitude = bitsToFloat(floatToBits(a) & 0x7fffffffu);
  bool isOrdinary = magnitude > 0.0f && magnitude < kInfinity;
  double logarithm = logOfNormal(isOrdinary ? (double)magnitude : 1.0) * 1.44269504088896340736;
  logarithm = magnitude == 0.0f ? -__builtin_inf() : isOrdinary ? logarithm : (double)magnitude;
  double t = (double)b * logarithm;
  t = t > 200.0 ? 200.0 : t;
  t = t < -200.0 ? -200.0 : t;
  double rounded = t + kRoundDouble;
  double r = (t - (rounded - kRoundDouble)) * 0.69314718055994530942;
  double p = 1.0 / 3628800.0; // e^r = sum r^k / k!
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  unsigned long long n = t == t ? doubleToBits(rounded) - doubleToBits(kRoundDouble) : 0;
  float result = (float)(p * bitsToDouble((n + 1023) << 52));
  // 2. The sign, and what has no logarithm, as in C.
  float half = b * 0.5f;
  bool isWhole = b == __builtin_floorf(b), isOdd = isWhole && half != __builtin_floorf(half);
  bool isNegative = (floatToBits(a) >> 31) != 0;
  result = isNegative && isOdd ? -result : result;
  result = a < 0.0f && a > -kInfinity && !isWhole ? kNaN : result;
  result = a == -1.0f && b - b != 0.0f && b == b ? 1.0f : result; // (-1)^(+-inf)
  return a == 1.0f || b == 0.0f ? 1.0f : result;
}

/// From here on neighbouring f32 are further apart than a period: sin and cos see 0 on every target.
inline constexpr float kLargestAngle = 0x1p29f;

/// x = n pi/2 + r with |r| <= pi/4; gives r and the low bits of n.
struct ReducedAngle {
  double r;
  unsigned long long n;
};
static inline ReducedAngle reduceAngle(float x) {
  bool isSmall = x < kLargestAngle && x > -kLargestAngle;
  double a = (double)(isSmall ? x : x - x); // NaN from infinity and NaN
  double rounded = a * 0.63661977236758134308 + kRoundDouble;
  double n = rounded - kRoundDouble;
  // pi/2 in parts of 24 bits, whose products with n below 2^29 are exact, and a rest.
  double r = a - n * 0x1.921fb6p+0;
  r = r - n * -0x1.777a5cp-25;
  r = r - n * -0x1.ee59dap-50;
  r = r - n * 0x1.98a2e03707345p-77;
  return {r, doubleToBits(rounded)};
}
static inline double sinOfReduced(double r) {
  double z = r * r;
  double p = -1.0 / 39916800.0;
  p = p * z + 1.0 / 362880.0;
  p = p * z + -1.0 / 5040.0;
  p = p * z + 1.0 / 120.0;
  p = p * z + -1.0 / 6.0;
  return r + r * z * p;
}
static inline double cosOfReduced(double r) {
  double z = r * r;
  double p = 1.0 / 479001600.0;
  p = p * z + -1.0 / 3628800.0;
  p = p * z + 1.0 / 40320.0;
  p = p * z + -1.0 / 720.0;
  p = p * z + 1.0 / 24.0;
  p = p * z + -0.5;
  return 1.0 + z * p;
}
/// sin(r + quadrant pi/2).
static inline float sinOfQuadrant(double r, unsigned long long quadrant) {
  double value = (quadrant & 1) != 0 ? cosOfReduced(r) : sinOfReduced(r);
  return (float)((quadrant & 2) != 0 ? -value : value);
}
static inline float sin(float x) {
  ReducedAngle angle = reduceAngle(x);
  float result = sinOfQuadrant(angle.r, angle.n);
  return x == 0.0f ? x : result;
}
static inline float cos(float x) {
  ReducedAngle angle = reduceAngle(x);
  return sinOfQuadrant(angle.r, angle.n + 1);
}

static inline float sqrt(float x) { return __builtin_sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
static inline float floor(float x) { return __builtin_floorf(x); }

} // namespace cpflex::ops
