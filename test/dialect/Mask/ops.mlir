// Every operation of the dialect survives printing and parsing, in its text and in its generic form.
// RUN: %cpflex-opt %s | %cpflex-opt | FileCheck %s
// RUN: %cpflex-opt %s --mlir-print-op-generic | %cpflex-opt | FileCheck %s

// CHECK: mask.capture @doc : i32 ["B", "KV_LEN"] {sorted}
mask.capture @doc : i32 ["B", "KV_LEN"] {sorted}
// CHECK: mask.capture @ids : ui8 ["KV_LEN"] {hi = 9 : i64, lo = 1 : i64}
mask.capture @ids : ui8 ["KV_LEN"] {hi = 9 : i64, lo = 1 : i64}
// CHECK: mask.capture @scalar : i1 []
mask.capture @scalar : i1 []
// CHECK: mask.capture @table : bf16 ["2*R+1", "H"] {grad}
mask.capture @table : bf16 ["2*R+1", "H"] {grad}
// CHECK: mask.capture @sinks : f32 ["H"]
mask.capture @sinks : f32 ["H"]
// CHECK: mask.param @W : i64 = 1024 : i64
mask.param @W : i64 = 1024 : i64
// CHECK: mask.param @scale : f32
mask.param @scale : f32

// CHECK-LABEL: mask.predicate @leaves(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
mask.predicate @leaves(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // CHECK: mask.constant 7 : i64
  %0 = mask.constant 7 : i64
  // CHECK: mask.constant 7 : ui32
  %1 = mask.constant 7 : ui32
  // CHECK: mask.constant 0x7F800000 : f32
  %2 = mask.constant 0x7F800000 : f32
  // CHECK: mask.constant true
  %3 = mask.constant true
  // CHECK: mask.param_value @W : i64
  %4 = mask.param_value @W : i64
  // CHECK: mask.dim "KV_LEN" : i64
  %5 = mask.dim "KV_LEN" : i64
  // CHECK: mask.load @doc[%b, %q] : (i64, i64) -> i64
  %6 = mask.load @doc[%b, %q] : (i64, i64) -> i64
  // CHECK: mask.load @scalar[] : () -> i1
  %7 = mask.load @scalar[] : () -> i1
  // CHECK: mask.load @table[%q, %h] : (i64, i64) -> f32
  %8 = mask.load @table[%q, %h] : (i64, i64) -> f32
  // CHECK: mask.yield %{{.*}} : i1
  mask.yield %3 : i1
}
// CHECK-LABEL: mask.predicate @bools
mask.predicate @bools(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %x = mask.lt %q, %kv : i64
  %y = mask.lt %kv, %h : i64
  %c = mask.lt %q, %kv : i64
  // CHECK: mask.and %{{.*}}, %{{.*}} : i1
  %v10 = mask.and %x, %y : i1
  // CHECK: mask.or %{{.*}}, %{{.*}} : i1
  %v11 = mask.or %x, %y : i1
  // CHECK: mask.xor %{{.*}}, %{{.*}} : i1
  %v12 = mask.xor %x, %y : i1
  // CHECK: mask.not %{{.*}} : i1
  %v13 = mask.not %x : i1
  // CHECK: mask.eq %{{.*}}, %{{.*}} : i1
  %v29 = mask.eq %x, %y : i1
  // CHECK: mask.ne %{{.*}}, %{{.*}} : i1
  %v30 = mask.ne %x, %y : i1
  // CHECK: mask.select %{{.*}}, %{{.*}}, %{{.*}} : i1, i1
  %v35 = mask.select %c, %x, %y : i1, i1
  // CHECK: mask.to_bool %{{.*}} : i1 -> i1
  %v36 = mask.to_bool %x : i1 -> i1
  // CHECK: mask.to_int %{{.*}} : i1 -> i64
  %v37 = mask.to_int %x : i1 -> i64
  // CHECK: mask.to_u32 %{{.*}} : i1 -> ui32
  %v38 = mask.to_u32 %x : i1 -> ui32
  // CHECK: mask.to_float %{{.*}} : i1 -> f32
  %v39 = mask.to_float %x : i1 -> f32
  mask.yield %c : i1
}
// CHECK-LABEL: mask.predicate @ints
mask.predicate @ints(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %x = mask.add %q, %b : i64
  %y = mask.add %kv, %h : i64
  %c = mask.lt %q, %kv : i64
  // CHECK: mask.add %{{.*}}, %{{.*}} : i64
  %v0 = mask.add %x, %y : i64
  // CHECK: mask.sub %{{.*}}, %{{.*}} : i64
  %v1 = mask.sub %x, %y : i64
  // CHECK: mask.mul %{{.*}}, %{{.*}} : i64
  %v2 = mask.mul %x, %y : i64
  // CHECK: mask.floordiv %{{.*}}, %{{.*}} : i64
  %v4 = mask.floordiv %x, %y : i64
  // CHECK: mask.mod %{{.*}}, %{{.*}} : i64
  %v5 = mask.mod %x, %y : i64
  // CHECK: mask.neg %{{.*}} : i64
  %v6 = mask.neg %x : i64
  // CHECK: mask.abs %{{.*}} : i64
  %v7 = mask.abs %x : i64
  // CHECK: mask.min %{{.*}}, %{{.*}} : i64
  %v8 = mask.min %x, %y : i64
  // CHECK: mask.max %{{.*}}, %{{.*}} : i64
  %v9 = mask.max %x, %y : i64
  // CHECK: mask.and %{{.*}}, %{{.*}} : i64
  %v10 = mask.and %x, %y : i64
  // CHECK: mask.or %{{.*}}, %{{.*}} : i64
  %v11 = mask.or %x, %y : i64
  // CHECK: mask.xor %{{.*}}, %{{.*}} : i64
  %v12 = mask.xor %x, %y : i64
  // CHECK: mask.not %{{.*}} : i64
  %v13 = mask.not %x : i64
  // CHECK: mask.shl %{{.*}}, %{{.*}} : i64
  %v14 = mask.shl %x, %y : i64
  // CHECK: mask.shr %{{.*}}, %{{.*}} : i64
  %v15 = mask.shr %x, %y : i64
  // CHECK: mask.ilog2 %{{.*}} : i64
  %v16 = mask.ilog2 %x : i64
  // CHECK: mask.eq %{{.*}}, %{{.*}} : i64
  %v29 = mask.eq %x, %y : i64
  // CHECK: mask.ne %{{.*}}, %{{.*}} : i64
  %v30 = mask.ne %x, %y : i64
  // CHECK: mask.lt %{{.*}}, %{{.*}} : i64
  %v31 = mask.lt %x, %y : i64
  // CHECK: mask.le %{{.*}}, %{{.*}} : i64
  %v32 = mask.le %x, %y : i64
  // CHECK: mask.gt %{{.*}}, %{{.*}} : i64
  %v33 = mask.gt %x, %y : i64
  // CHECK: mask.ge %{{.*}}, %{{.*}} : i64
  %v34 = mask.ge %x, %y : i64
  // CHECK: mask.select %{{.*}}, %{{.*}}, %{{.*}} : i1, i64
  %v35 = mask.select %c, %x, %y : i1, i64
  // CHECK: mask.to_bool %{{.*}} : i64 -> i1
  %v36 = mask.to_bool %x : i64 -> i1
  // CHECK: mask.to_int %{{.*}} : i64 -> i64
  %v37 = mask.to_int %x : i64 -> i64
  // CHECK: mask.to_u32 %{{.*}} : i64 -> ui32
  %v38 = mask.to_u32 %x : i64 -> ui32
  // CHECK: mask.to_float %{{.*}} : i64 -> f32
  %v39 = mask.to_float %x : i64 -> f32
  mask.yield %c : i1
}
// CHECK-LABEL: mask.predicate @u32s
mask.predicate @u32s(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %x = mask.to_u32 %q : i64 -> ui32
  %y = mask.to_u32 %kv : i64 -> ui32
  %c = mask.lt %q, %kv : i64
  // CHECK: mask.add %{{.*}}, %{{.*}} : ui32
  %v0 = mask.add %x, %y : ui32
  // CHECK: mask.sub %{{.*}}, %{{.*}} : ui32
  %v1 = mask.sub %x, %y : ui32
  // CHECK: mask.mul %{{.*}}, %{{.*}} : ui32
  %v2 = mask.mul %x, %y : ui32
  // CHECK: mask.floordiv %{{.*}}, %{{.*}} : ui32
  %v4 = mask.floordiv %x, %y : ui32
  // CHECK: mask.mod %{{.*}}, %{{.*}} : ui32
  %v5 = mask.mod %x, %y : ui32
  // CHECK: mask.neg %{{.*}} : ui32
  %v6 = mask.neg %x : ui32
  // CHECK: mask.abs %{{.*}} : ui32
  %v7 = mask.abs %x : ui32
  // CHECK: mask.min %{{.*}}, %{{.*}} : ui32
  %v8 = mask.min %x, %y : ui32
  // CHECK: mask.max %{{.*}}, %{{.*}} : ui32
  %v9 = mask.max %x, %y : ui32
  // CHECK: mask.and %{{.*}}, %{{.*}} : ui32
  %v10 = mask.and %x, %y : ui32
  // CHECK: mask.or %{{.*}}, %{{.*}} : ui32
  %v11 = mask.or %x, %y : ui32
  // CHECK: mask.xor %{{.*}}, %{{.*}} : ui32
  %v12 = mask.xor %x, %y : ui32
  // CHECK: mask.not %{{.*}} : ui32
  %v13 = mask.not %x : ui32
  // CHECK: mask.shl %{{.*}}, %{{.*}} : ui32
  %v14 = mask.shl %x, %y : ui32
  // CHECK: mask.shr %{{.*}}, %{{.*}} : ui32
  %v15 = mask.shr %x, %y : ui32
  // CHECK: mask.ilog2 %{{.*}} : ui32
  %v16 = mask.ilog2 %x : ui32
  // CHECK: mask.eq %{{.*}}, %{{.*}} : ui32
  %v29 = mask.eq %x, %y : ui32
  // CHECK: mask.ne %{{.*}}, %{{.*}} : ui32
  %v30 = mask.ne %x, %y : ui32
  // CHECK: mask.lt %{{.*}}, %{{.*}} : ui32
  %v31 = mask.lt %x, %y : ui32
  // CHECK: mask.le %{{.*}}, %{{.*}} : ui32
  %v32 = mask.le %x, %y : ui32
  // CHECK: mask.gt %{{.*}}, %{{.*}} : ui32
  %v33 = mask.gt %x, %y : ui32
  // CHECK: mask.ge %{{.*}}, %{{.*}} : ui32
  %v34 = mask.ge %x, %y : ui32
  // CHECK: mask.select %{{.*}}, %{{.*}}, %{{.*}} : i1, ui32
  %v35 = mask.select %c, %x, %y : i1, ui32
  // CHECK: mask.to_bool %{{.*}} : ui32 -> i1
  %v36 = mask.to_bool %x : ui32 -> i1
  // CHECK: mask.to_int %{{.*}} : ui32 -> i64
  %v37 = mask.to_int %x : ui32 -> i64
  // CHECK: mask.to_u32 %{{.*}} : ui32 -> ui32
  %v38 = mask.to_u32 %x : ui32 -> ui32
  // CHECK: mask.to_float %{{.*}} : ui32 -> f32
  %v39 = mask.to_float %x : ui32 -> f32
  mask.yield %c : i1
}
// CHECK-LABEL: mask.predicate @floats
mask.predicate @floats(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %x = mask.to_float %q : i64 -> f32
  %y = mask.to_float %kv : i64 -> f32
  %c = mask.lt %q, %kv : i64
  // CHECK: mask.add %{{.*}}, %{{.*}} : f32
  %v0 = mask.add %x, %y : f32
  // CHECK: mask.sub %{{.*}}, %{{.*}} : f32
  %v1 = mask.sub %x, %y : f32
  // CHECK: mask.mul %{{.*}}, %{{.*}} : f32
  %v2 = mask.mul %x, %y : f32
  // CHECK: mask.div %{{.*}}, %{{.*}} : f32
  %v3 = mask.div %x, %y : f32
  // CHECK: mask.floordiv %{{.*}}, %{{.*}} : f32
  %v4 = mask.floordiv %x, %y : f32
  // CHECK: mask.mod %{{.*}}, %{{.*}} : f32
  %v5 = mask.mod %x, %y : f32
  // CHECK: mask.neg %{{.*}} : f32
  %v6 = mask.neg %x : f32
  // CHECK: mask.abs %{{.*}} : f32
  %v7 = mask.abs %x : f32
  // CHECK: mask.min %{{.*}}, %{{.*}} : f32
  %v8 = mask.min %x, %y : f32
  // CHECK: mask.max %{{.*}}, %{{.*}} : f32
  %v9 = mask.max %x, %y : f32
  // CHECK: mask.exp %{{.*}} : f32
  %v17 = mask.exp %x : f32
  // CHECK: mask.exp2 %{{.*}} : f32
  %v18 = mask.exp2 %x : f32
  // CHECK: mask.log %{{.*}} : f32
  %v19 = mask.log %x : f32
  // CHECK: mask.log1p %{{.*}} : f32
  %v20 = mask.log1p %x : f32
  // CHECK: mask.tanh %{{.*}} : f32
  %v21 = mask.tanh %x : f32
  // CHECK: mask.sigmoid %{{.*}} : f32
  %v22 = mask.sigmoid %x : f32
  // CHECK: mask.sqrt %{{.*}} : f32
  %v23 = mask.sqrt %x : f32
  // CHECK: mask.rsqrt %{{.*}} : f32
  %v24 = mask.rsqrt %x : f32
  // CHECK: mask.sin %{{.*}} : f32
  %v25 = mask.sin %x : f32
  // CHECK: mask.cos %{{.*}} : f32
  %v26 = mask.cos %x : f32
  // CHECK: mask.floor %{{.*}} : f32
  %v27 = mask.floor %x : f32
  // CHECK: mask.pow %{{.*}}, %{{.*}} : f32
  %v28 = mask.pow %x, %y : f32
  // CHECK: mask.eq %{{.*}}, %{{.*}} : f32
  %v29 = mask.eq %x, %y : f32
  // CHECK: mask.ne %{{.*}}, %{{.*}} : f32
  %v30 = mask.ne %x, %y : f32
  // CHECK: mask.lt %{{.*}}, %{{.*}} : f32
  %v31 = mask.lt %x, %y : f32
  // CHECK: mask.le %{{.*}}, %{{.*}} : f32
  %v32 = mask.le %x, %y : f32
  // CHECK: mask.gt %{{.*}}, %{{.*}} : f32
  %v33 = mask.gt %x, %y : f32
  // CHECK: mask.ge %{{.*}}, %{{.*}} : f32
  %v34 = mask.ge %x, %y : f32
  // CHECK: mask.select %{{.*}}, %{{.*}}, %{{.*}} : i1, f32
  %v35 = mask.select %c, %x, %y : i1, f32
  // CHECK: mask.to_bool %{{.*}} : f32 -> i1
  %v36 = mask.to_bool %x : f32 -> i1
  // CHECK: mask.to_int %{{.*}} : f32 -> i64
  %v37 = mask.to_int %x : f32 -> i64
  // CHECK: mask.to_u32 %{{.*}} : f32 -> ui32
  %v38 = mask.to_u32 %x : f32 -> ui32
  // CHECK: mask.to_float %{{.*}} : f32 -> f32
  %v39 = mask.to_float %x : f32 -> f32
  mask.yield %c : i1
}

// CHECK-LABEL: mask.predicate @narrow(%b: i32, %h: i32, %q: i32, %kv: i32) -> i1 {
mask.predicate @narrow(%b: i32, %h: i32, %q: i32, %kv: i32) -> i1 {
  // CHECK: mask.load @doc[%b, %q] : (i32, i32) -> i32
  %0 = mask.load @doc[%b, %q] : (i32, i32) -> i32
  // CHECK: mask.to_int %{{.*}} : i32 -> i64
  %1 = mask.to_int %0 : i32 -> i64
  // CHECK: mask.param_value @W : i32
  %2 = mask.param_value @W : i32
  // CHECK: mask.lt %{{.*}}, %{{.*}} : i32
  %3 = mask.lt %0, %2 : i32
  mask.yield %3 : i1
}

// CHECK-LABEL: mask.predicate @reductions
mask.predicate @reductions(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %n = mask.dim "KV_LEN" : i64
  // CHECK: mask.reduce sum %{{.*}} : i64 -> i64 {
  // CHECK: ^bb0(%[[I:.*]]: i64):
  // CHECK: mask.yield %[[I]] : i64
  %0 = mask.reduce sum %n : i64 -> i64 {
  ^bb0(%i: i64):
    mask.yield %i : i64
  }
  // CHECK: mask.reduce min %{{.*}} : i64 -> i64 {
  %1 = mask.reduce min %n : i64 -> i64 {
  ^bb0(%i: i64):
    mask.yield %i : i64
  }
  // CHECK: mask.reduce max %{{.*}} : i64 -> i64 {
  %2 = mask.reduce max %n : i64 -> i64 {
  ^bb0(%i: i64):
    mask.yield %i : i64
  }
  // CHECK: mask.reduce all %{{.*}} : i64 -> i1 {
  %3 = mask.reduce all %n : i64 -> i1 {
  ^bb0(%i: i64):
    %4 = mask.lt %i, %q : i64
    mask.yield %4 : i1
  }
  // CHECK: mask.reduce any %{{.*}} : i64 -> i1 {
  %5 = mask.reduce any %n : i64 -> i1 {
  ^bb0(%i: i64):
    %6 = mask.lt %i, %q : i64
    mask.yield %6 : i1
  }
  mask.yield %5 : i1
}

// CHECK-LABEL: mask.score @double(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
mask.score @double(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.add %s, %s : f32
  mask.yield %0 : f32
}

// CHECK-LABEL: mask.score_gradient @double.gradient(%gradient: f32, %s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
mask.score_gradient @double.gradient(%g: f32, %s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  // CHECK: mask.scatter_add %gradient, @table[%q, %h] : f32[i64, i64]
  mask.scatter_add %g, @table[%q, %h] : f32[i64, i64]
  mask.yield %g : f32
}

// CHECK-LABEL: mask.classifier @leaves.classifier(%b: !mask.interval<i64>,
mask.classifier @leaves.classifier(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>,
                                   %kv: !mask.interval<i64>) -> !mask.interval<i1> {
  // CHECK: mask.constant interval 7 : i64
  %0 = mask.constant interval 7 : i64
  // CHECK: mask.load @doc[%b, %q] : (!mask.interval<i64>, !mask.interval<i64>) -> !mask.interval<i64>
  %1 = mask.load @doc[%b, %q] : (!mask.interval<i64>, !mask.interval<i64>) -> !mask.interval<i64>
  // CHECK: mask.lt %{{.*}}, %{{.*}} : !mask.interval<i64>
  %2 = mask.lt %0, %1 : !mask.interval<i64>
  // CHECK: mask.select %{{.*}}, %{{.*}}, %{{.*}} : !mask.interval<i1>, !mask.interval<i64>
  %3 = mask.select %2, %0, %1 : !mask.interval<i1>, !mask.interval<i64>
  // CHECK: mask.to_float %{{.*}} : !mask.interval<i64> -> !mask.interval<f32>
  %4 = mask.to_float %3 : !mask.interval<i64> -> !mask.interval<f32>
  // CHECK: mask.to_bool %{{.*}} : !mask.interval<f32> -> !mask.interval<i1>
  %5 = mask.to_bool %4 : !mask.interval<f32> -> !mask.interval<i1>
  // CHECK: mask.yield %{{.*}} : !mask.interval<i1>
  mask.yield %5 : !mask.interval<i1>
}

// CHECK: mask.attention @every mask(@leaves) score(@double) sink(@sinks) scale(1.250000e-01) no_softmax
mask.attention @every mask(@leaves) score(@double) sink(@sinks) scale(0.125) no_softmax
// CHECK: mask.attention @plain
mask.attention @plain
