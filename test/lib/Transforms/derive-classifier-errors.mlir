// RUN: %cpflex-opt %s --mask-derive-classifier --verify-diagnostics

// expected-error@+1 {{computes in 32 bits; expected the classifier to be derived before ints are narrowed}}
mask.predicate @f(%b: i32, %h: i32, %q: i32, %kv: i32) -> i1 {
  %0 = mask.lt %q, %kv : i32
  mask.yield %0 : i1
}
