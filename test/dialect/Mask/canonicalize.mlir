// What expressions fold and simplify to. Each function is one rule, or one that must not apply.
// RUN: %cpflex-opt %s --canonicalize --cse --split-input-file | FileCheck %s

// CHECK-LABEL: @constantsFoldByTheTable
mask.score @constantsFoldByTheTable(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %m7 = mask.constant -7 : i64
  %2 = mask.constant 2 : i64
  // -7 // 2 rounds down to -4, and -7 % 2 has the divisor's sign.
  %d = mask.floordiv %m7, %2 : i64
  %r = mask.mod %m7, %2 : i64
  %x = mask.mul %d, %r : i64
  // CHECK-NEXT: mask.constant -4.000000e+00 : f32
  // CHECK-NEXT: mask.yield
  %f = mask.to_float %x : i64 -> f32
  mask.yield %f : f32
}

// -----

// CHECK-LABEL: @u32Wraps
mask.score @u32Wraps(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %big = mask.constant 4294967295 : ui32
  %2 = mask.constant 2 : ui32
  %x = mask.add %big, %2 : ui32
  // CHECK-NEXT: mask.constant 1.000000e+00 : f32
  %f = mask.to_float %x : ui32 -> f32
  mask.yield %f : f32
}

// -----

// An interval of constants is a constant interval.
// CHECK-LABEL: @intervalsOfOneValueFold
mask.classifier @intervalsOfOneValueFold(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>,
                                         %kv: !mask.interval<i64>) -> !mask.interval<i1> {
  %2 = mask.constant interval 2 : i64
  %3 = mask.constant interval 3 : i64
  %x = mask.mul %2, %3 : !mask.interval<i64>
  // CHECK: %[[SIX:.*]] = mask.constant interval 6 : i64
  // CHECK-NEXT: mask.lt %q, %[[SIX]]
  %r = mask.lt %q, %x : !mask.interval<i64>
  mask.yield %r : !mask.interval<i1>
}

// -----

// CHECK-LABEL: @identitiesOfInts
mask.predicate @identitiesOfInts(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  %1 = mask.constant 1 : i64
  %x1 = mask.add %0, %q : i64
  %x2 = mask.mul %x1, %1 : i64
  %x3 = mask.floordiv %x2, %1 : i64
  %x4 = mask.shr %x3, %0 : i64
  %z1 = mask.sub %kv, %kv : i64
  %z2 = mask.mod %kv, %1 : i64
  %z3 = mask.mul %kv, %0 : i64
  %z4 = mask.add %z1, %z2 : i64
  %z5 = mask.add %z4, %z3 : i64
  // CHECK-NEXT: %[[ZERO:.*]] = mask.constant 0 : i64
  // CHECK-NEXT: mask.lt %q, %[[ZERO]] : i64
  %r = mask.lt %x4, %z5 : i64
  mask.yield %r : i1
}

// -----

// Adding 0 turns -0 into 0, and the difference of two equal infinities is NaN.
// CHECK-LABEL: @floatsKeepTheirSpecialValues
mask.score @floatsKeepTheirSpecialValues(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.constant 0.0 : f32
  // CHECK: mask.add
  %x = mask.add %s, %0 : f32
  // CHECK: mask.sub
  %y = mask.sub %x, %x : f32
  // CHECK: mask.mul
  %z = mask.mul %y, %0 : f32
  mask.yield %z : f32
}

// -----

// CHECK-LABEL: @identitiesOfFloats
mask.score @identitiesOfFloats(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.constant 0.0 : f32
  %m0 = mask.constant -0.0 : f32
  %1 = mask.constant 1.0 : f32
  %a = mask.sub %s, %0 : f32
  %b1 = mask.add %a, %m0 : f32
  %c = mask.mul %b1, %1 : f32
  %d = mask.div %c, %1 : f32
  %e = mask.neg %d : f32
  %f = mask.neg %e : f32
  // CHECK-NEXT: mask.yield %s
  mask.yield %f : f32
}

// -----

// CHECK-LABEL: @identitiesOfConversions
mask.predicate @identitiesOfConversions(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[C:.*]] = mask.lt
  %c = mask.lt %q, %kv : i64
  %i = mask.to_int %c : i1 -> i64
  %j = mask.to_int %i : i64 -> i64
  %x = mask.to_bool %j : i64 -> i1
  %u = mask.to_u32 %x : i1 -> ui32
  %y = mask.to_bool %u : ui32 -> i1
  // CHECK-NEXT: mask.yield %[[C]]
  mask.yield %y : i1
}

// -----

// CHECK-LABEL: @constantsGoToTheRight
mask.predicate @constantsGoToTheRight(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: %[[C:.*]] = mask.constant 5 : i64
  %5 = mask.constant 5 : i64
  // CHECK: mask.add %q, %[[C]]
  %x = mask.add %5, %q : i64
  // CHECK: mask.ge %{{.*}}, %[[C]]
  %r = mask.le %5, %x : i64
  mask.yield %r : i1
}

// -----

// Sums wrap, so terms may be collected.
// CHECK-LABEL: @termsOfASumAreCollected
mask.predicate @termsOfASumAreCollected(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[C:.*]] = mask.constant 7 : i64
  %3 = mask.constant 3 : i64
  %4 = mask.constant 4 : i64
  %d = mask.sub %q, %kv : i64
  %x = mask.add %d, %3 : i64
  %y = mask.add %x, %kv : i64
  // CHECK-NEXT: %[[SUM:.*]] = mask.add %q, %[[C]] : i64
  %z = mask.add %y, %4 : i64
  // CHECK-NEXT: mask.lt %[[SUM]], %h
  %r = mask.lt %z, %h : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @windowsStayReadable
mask.predicate @windowsStayReadable(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-DAG: %[[ZERO:.*]] = mask.constant 0 : i64
  // CHECK-DAG: %[[W:.*]] = mask.constant 64 : i64
  // CHECK: %[[D:.*]] = mask.sub %q, %kv : i64
  // CHECK: %[[LO:.*]] = mask.ge %[[D]], %[[ZERO]]
  // CHECK: %[[HI:.*]] = mask.lt %[[D]], %[[W]]
  // CHECK: mask.and %[[LO]], %[[HI]]
  %0 = mask.constant 0 : i64
  %w = mask.constant 64 : i64
  %d = mask.sub %q, %kv : i64
  %lo = mask.le %0, %d : i64
  %hi = mask.lt %d, %w : i64
  %r = mask.and %lo, %hi : i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @remainderWrittenOut
mask.predicate @remainderWrittenOut(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[N:.*]] = mask.constant 12 : i64
  // CHECK-NEXT: %[[R:.*]] = mask.mod %q, %[[N]]
  // CHECK-NEXT: mask.eq %[[R]], %kv
  %n = mask.constant 12 : i64
  %d = mask.floordiv %q, %n : i64
  %p = mask.mul %d, %n : i64
  %x = mask.sub %q, %p : i64
  %y = mask.mod %x, %n : i64
  %r = mask.eq %y, %kv : i64
  mask.yield %r : i1
}

// -----

// By a divisor that may be 0 the quotient is 0, so the difference is q and not a remainder.
// CHECK-LABEL: @remainderByAnUnknownDivisorStays
mask.predicate @remainderByAnUnknownDivisorStays(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: mask.floordiv
  // CHECK: mask.sub
  %d = mask.floordiv %q, %kv : i64
  %p = mask.mul %d, %kv : i64
  %x = mask.sub %q, %p : i64
  %r = mask.eq %x, %h : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @quotientsMerge
mask.predicate @quotientsMerge(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[N:.*]] = mask.constant 12 : i64
  // CHECK-NEXT: %[[D:.*]] = mask.floordiv %q, %[[N]]
  %3 = mask.constant 3 : i64
  %4 = mask.constant 4 : i64
  %x = mask.floordiv %q, %3 : i64
  %y = mask.floordiv %x, %4 : i64
  // CHECK-NEXT: mask.lt %[[D]], %kv
  %r = mask.lt %y, %kv : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @remainderOfARemainder
mask.predicate @remainderOfARemainder(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[N:.*]] = mask.constant 2 : i64
  // CHECK-NEXT: %[[R:.*]] = mask.mod %q, %[[N]]
  // CHECK-NEXT: mask.eq %[[R]], %kv
  %32 = mask.constant 32 : i64
  %2 = mask.constant 2 : i64
  %x = mask.mod %q, %32 : i64
  %y = mask.mod %x, %2 : i64
  %r = mask.eq %y, %kv : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @remainderByNoDivisorStays
mask.predicate @remainderByNoDivisorStays(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %32 = mask.constant 32 : i64
  %5 = mask.constant 5 : i64
  // CHECK: mask.mod
  // CHECK: mask.mod
  %x = mask.mod %q, %32 : i64
  %y = mask.mod %x, %5 : i64
  %r = mask.eq %y, %kv : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @signs
mask.predicate @signs(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[ABS:.*]] = mask.abs %b
  // CHECK-NEXT: %[[D:.*]] = mask.sub %kv, %q
  // CHECK-NEXT: mask.lt %[[ABS]], %[[D]]
  %m = mask.neg %b : i64
  %a = mask.abs %m : i64
  %x = mask.sub %q, %kv : i64
  %y = mask.neg %x : i64
  %r = mask.lt %a, %y : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @equalityOfDifferences
mask.predicate @equalityOfDifferences(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  %d = mask.sub %q, %kv : i64
  // CHECK-NEXT: %[[E:.*]] = mask.eq %q, %kv
  %e = mask.eq %d, %0 : i64
  %x = mask.add %q, %h : i64
  %y = mask.add %b, %h : i64
  // CHECK-NEXT: %[[N:.*]] = mask.ne %q, %b
  %n = mask.ne %x, %y : i64
  // CHECK-NEXT: mask.and %[[E]], %[[N]]
  %r = mask.and %e, %n : i1
  mask.yield %r : i1
}

// -----

// q + 1 < kv + 1 is not q < kv where a sum wraps.
// CHECK-LABEL: @orderOfSumsStays
mask.predicate @orderOfSumsStays(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: mask.add
  // CHECK: mask.add
  %x = mask.add %q, %h : i64
  %y = mask.add %kv, %h : i64
  %r = mask.lt %x, %y : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @notMovesIntoComparisons
mask.predicate @notMovesIntoComparisons(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %x = mask.lt %q, %kv : i64
  %y = mask.eq %b, %h : i64
  %z = mask.and %x, %y : i1
  // CHECK-NEXT: %[[X:.*]] = mask.ge %q, %kv
  // CHECK-NEXT: %[[Y:.*]] = mask.ne %b, %h
  // CHECK-NEXT: mask.or %[[X]], %[[Y]]
  %r = mask.not %z : i1
  mask.yield %r : i1
}

// -----

// A NaN compares false both ways.
// CHECK-LABEL: @notOfAFloatComparisonStays
mask.predicate @notOfAFloatComparisonStays(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %x = mask.to_float %q : i64 -> f32
  %y = mask.to_float %kv : i64 -> f32
  // CHECK: mask.lt
  // CHECK-NEXT: mask.not
  %c = mask.lt %x, %y : f32
  %r = mask.not %c : i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @absorption
mask.predicate @absorption(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: %[[X:.*]] = mask.lt %q, %kv
  %x = mask.lt %q, %kv : i64
  %y = mask.eq %b, %h : i64
  %o = mask.or %x, %y : i1
  // CHECK-NEXT: mask.yield %[[X]]
  %r = mask.and %x, %o : i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @complementsAreExhaustive
mask.predicate @complementsAreExhaustive(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK-NEXT: mask.constant true
  // CHECK-NEXT: mask.yield
  %x = mask.lt %q, %kv : i64
  %y = mask.le %kv, %q : i64
  %r = mask.or %x, %y : i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @boundsMerge
mask.predicate @boundsMerge(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %3 = mask.constant 3 : i64
  %5 = mask.constant 5 : i64
  // CHECK-NEXT: %[[C:.*]] = mask.constant 3 : i64
  // CHECK-NEXT: mask.lt %q, %[[C]]
  %x = mask.lt %q, %3 : i64
  %y = mask.lt %q, %5 : i64
  %r = mask.and %x, %y : i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @selectsOfBoolsAreLogic
mask.predicate @selectsOfBoolsAreLogic(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %true = mask.constant true
  %false = mask.constant false
  // CHECK: %[[X:.*]] = mask.lt %q, %kv
  %x = mask.lt %q, %kv : i64
  // CHECK: %[[Y:.*]] = mask.eq %b, %h
  %y = mask.eq %b, %h : i64
  // CHECK: %[[O:.*]] = mask.or %[[X]], %[[Y]]
  %o = mask.select %x, %true, %y : i1, i1
  // CHECK: %[[Z:.*]] = mask.ge %q, %b
  %z = mask.ge %q, %b : i64
  // CHECK: mask.and %[[Z]], %[[O]]
  %r = mask.select %z, %o, %false : i1, i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @selectsOfComparedIntsAreExtrema
mask.predicate @selectsOfComparedIntsAreExtrema(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  %c = mask.lt %q, %kv : i64
  // CHECK: %[[MAX:.*]] = mask.max %kv, %q
  %x = mask.select %c, %kv, %q : i1, i64
  %d = mask.sub %q, %b : i64
  %n = mask.neg %d : i64
  %e = mask.lt %d, %0 : i64
  // CHECK: %[[ABS:.*]] = mask.abs
  %y = mask.select %e, %n, %d : i1, i64
  // CHECK: mask.lt %[[MAX]], %[[ABS]]
  %r = mask.lt %x, %y : i64
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @selectOfTheSameCondition
mask.score @selectOfTheSameCondition(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %c = mask.lt %q, %kv : i64
  %n = mask.not %c : i1
  %x = mask.exp %s : f32
  %y = mask.sin %s : f32
  %z = mask.cos %s : f32
  // CHECK: %[[X:.*]] = mask.exp
  // CHECK: %[[Z:.*]] = mask.cos
  // CHECK: mask.select %{{.*}}, %[[Z]], %[[X]]
  %i = mask.select %c, %y, %x : i1, f32
  %r = mask.select %n, %i, %z : i1, f32
  mask.yield %r : f32
}

// -----

// CHECK-LABEL: @shortReductionsUnroll
mask.predicate @shortReductionsUnroll(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant 0 : i64
  %1 = mask.constant 1 : i64
  // CHECK: %[[C:.*]] = mask.lt %kv, %q
  %x = mask.reduce any %1 : i64 -> i1 {
  ^bb0(%i: i64):
    %e = mask.add %i, %kv : i64
    %c = mask.lt %e, %q : i64
    mask.yield %c : i1
  }
  %y = mask.reduce all %0 : i64 -> i1 {
  ^bb0(%i: i64):
    %c = mask.lt %i, %q : i64
    mask.yield %c : i1
  }
  // CHECK-NEXT: mask.yield %[[C]]
  %r = mask.and %x, %y : i1
  mask.yield %r : i1
}

// -----

// CHECK-LABEL: @boolsComparedWithConstants
mask.predicate @boolsComparedWithConstants(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %true = mask.constant true
  %false = mask.constant false
  %x = mask.lt %q, %kv : i64
  // CHECK-NEXT: mask.ge %q, %kv
  %y = mask.eq %x, %false : i1
  %z = mask.ne %y, %false : i1
  %w = mask.xor %z, %true : i1
  // CHECK-NEXT: mask.yield
  %r = mask.not %w : i1
  mask.yield %r : i1
}
