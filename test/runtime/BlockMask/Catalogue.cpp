// The counted cases of the mask catalogue: formulas, arrays and expected counts.
#include "test/runtime/BlockMask/Catalogue.h"

#include "test/runtime/BlockMask/PlainValues.h"

namespace cpflex::test {

namespace {

constexpr int64_t kS = 8192;

int64_t hashed(int64_t x) { return static_cast<int64_t>((static_cast<uint64_t>(x) * 2654435761u & 0xffffffffu) >> 8); }

/// Collects cases; a formula is called once with tape values and, for the oracle, with plain
/// numbers.
class Collector {
public:
  std::vector<CatalogueCase> cases;

  template <typename Formula>
  void add(const char *name, int64_t qLen, int64_t kvLen, CatalogueCounts counts, const Formula &makeFormula) {
    auto builder = std::make_shared<TapeBuilder>();
    auto formula = makeFormula(*builder);
    Value q = builder->q(), kv = builder->kv();
    builder->finish(formula(q, kv));
    cases.push_back({name, qLen, kvLen, counts, builder,
                     [formula](int64_t q, int64_t kv) { return formula(Number{q}, Number{kv}).value; }});
  }

  /// A formula without arrays.
  template <typename Formula>
  void plain(const char *name, int64_t qLen, int64_t kvLen, CatalogueCounts counts, const Formula &formula) {
    add(name, qLen, kvLen, counts, [&](TapeBuilder &) { return formula; });
  }
};

std::vector<int32_t> documentIds(const std::vector<int64_t> &lengths) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < lengths.size(); ++i)
    ids.insert(ids.end(), lengths[i], static_cast<int32_t>(i));
  return ids;
}

const std::vector<int64_t> kLengths = {1000, 530, 2100, 333, 97, 1600, 611, 1921};
const std::vector<int32_t> kOffsets = {0, 1000, 1530, 3630, 3963, 4060, 5660, 6271, 8192};

std::vector<int32_t> documentStarts() {
  std::vector<int32_t> starts;
  for (int32_t id : documentIds(kLengths))
    starts.push_back(kOffsets[id]);
  return starts;
}

std::vector<int32_t> imageSpans() {
  constexpr int64_t kStarts[] = {200, 1500, 3000, 4096, 6500};
  constexpr int64_t kSizes[] = {576, 729, 256, 1024, 577};
  std::vector<int32_t> spans(kS, -1);
  for (int32_t i = 0; i < 5; ++i)
    std::fill_n(spans.begin() + kStarts[i], kSizes[i], i);
  return spans;
}

template <typename Make> std::vector<uint8_t> flagsOf(int64_t count, const Make &make) {
  std::vector<uint8_t> flags(count);
  for (int64_t i = 0; i < count; ++i)
    flags[i] = make(i);
  return flags;
}

template <typename Make> std::vector<int32_t> numbersOf(int64_t count, const Make &make) {
  std::vector<int32_t> numbers(count);
  for (int64_t i = 0; i < count; ++i)
    numbers[i] = static_cast<int32_t>(make(i));
  return numbers;
}

void addPositional(Collector &c) {
  c.plain("M01", kS, kS, {67108864, 0, 4096, 0, 0, 0}, [](auto q, auto kv) { return q >= 0; });
  c.plain("M02", kS, kS, {33558528, 2016, 2016, 64, 0, 0}, [](auto q, auto kv) { return kv <= q; });
  c.plain("M02b", 2048, kS, {2098176, 888, 120, 16, 0, 6144}, [](auto q, auto kv) { return kv <= q; });
  c.plain("M03", 2048, kS, {14681088, 120, 888, 16, 0, 0}, [](auto q, auto kv) { return kv <= q + (kS - 2048); });
  c.plain("M04", kS, kS, {33550336, 2016, 2016, 64, 1, 1}, [](auto q, auto kv) { return kv < q; });
  c.plain("M05", kS, kS, {33558528, 2016, 2016, 64, 0, 0}, [](auto q, auto kv) { return kv >= q; });
  auto window = [](int64_t width) { return [width](auto q, auto kv) { return (kv <= q) & (q - kv < width); }; };
  c.plain("M06", kS, kS, {7864832, 3556, 420, 120, 0, 0}, window(1024));
  c.plain("M06b", kS, kS, {25167872, 2512, 1488, 96, 0, 0}, window(4096));
  c.plain("M06c", kS, kS, {7872000, 3556, 420, 120, 0, 0},
          [](auto q, auto kv) { return (kv <= q) & (q - kv <= 1024); });
  c.plain("M06d", kS, kS, {1040448, 3969, 0, 127, 0, 0}, window(128));
  c.plain("M07", kS, kS, {8134144, 3540, 436, 120, 0, 0}, [](auto q, auto kv) { return abs(q - kv) <= 512; });
  c.plain("M09", kS, kS, {3939328, 3080, 0, 1016, 0, 0},
          [](auto q, auto kv) { return (abs(q - kv) <= 1024) & (abs(q - kv) % 4 == 0); });
  auto sinkWindow = [](int64_t sink, int64_t width) {
    return [=](auto q, auto kv) { return (kv <= q) & ((kv < sink) | (q - kv < width)); };
  };
  c.plain("M11", kS, kS, {14681088, 3097, 792, 207, 0, 0}, sinkWindow(4, 2044));
  c.plain("M12", kS, kS, {8774208, 3501, 476, 119, 0, 0}, sinkWindow(128, 1024));
  c.plain("M15", kS, kS, {34082304, 1988, 2052, 56, 0, 0}, [](auto q, auto kv) { return (kv <= q) | (kv < 1024); });
  c.plain("M30", kS, kS, {8785920, 2016, 0, 2080, 0, 0},
          [](auto q, auto kv) { return (kv <= q) & ((q / 128 == kv / 128) | (kv % 128 >= 128 - 32)); });
  c.plain("M31", kS, kS, {1298496, 2016, 0, 2080, 0, 0},
          [](auto q, auto kv) { return (kv <= q) & ((q - kv < 128) | ((q - kv) % 128 == 0)); });
  auto blocks = [](int64_t size) { return [size](auto q, auto kv) { return kv / size <= q / size; }; };
  c.plain("M46", kS, kS, {37748736, 1792, 2304, 0, 0, 0}, blocks(1024));
  c.plain("M46b", kS, kS, {39715264, 1620, 2364, 112, 0, 0}, blocks(1560));
  c.plain("M48", kS, kS, {8392704, 3552, 480, 64, 0, 0},
          [](auto q, auto kv) { return (kv <= q) & (q / 2048 == kv / 2048); });
  c.plain("M49", kS, kS, {16842752, 3008, 992, 96, 0, 0}, [](auto q, auto kv) {
    auto isQNoisy = q < 4096, isKVNoisy = kv < 4096;
    auto qBlock = (q % 4096) / 16, kvBlock = (kv % 4096) / 16;
    return ((qBlock == kvBlock) & ((isQNoisy & isKVNoisy) | (~isQNoisy & ~isKVNoisy))) |
           ((qBlock > kvBlock) & isQNoisy & ~isKVNoisy) | ((qBlock >= kvBlock) & ~isQNoisy & ~isKVNoisy);
  });
  c.plain("M50", kS, kS, {33685504, 2016, 2016, 64, 0, 0}, blocks(32));
  c.plain("M52", 4096, kS, {16795648, 992, 1024, 32, 0, 0}, [](auto q, auto kv) {
    return (kv < 4096) | ((kv >= 4096) & (q / 8 == (kv - 4096) / 8) & ((kv - 4096) % 8 <= q % 8));
  });
  c.plain("M66", 1024, 1024, {523776, 28, 28, 8, 1, 1}, [](auto q, auto kv) { return kv * 8 + 5 <= q * 8 + 3; });
  c.plain("M69", kS, kS, {33554432, 0, 0, 4096, 0, 0}, [](auto q, auto kv) { return (q + kv) % 2 == 0; });
  c.plain("M72", kS, kS, {8774208, 3501, 476, 119, 0, 0}, sinkWindow(128, 1024));
  c.plain("M73", kS, kS, {49154192, 1071, 2944, 81, 0, 0}, [](auto q, auto kv) { return (kv < 6000) | (q == kv); });
  c.plain("M77", kS, kS, {41945088, 1520, 2544, 32, 0, 0},
          [](auto q, auto kv) { return select(q < 4096, kv < 4096, kv <= q); });
}

void addGrids(Collector &c) {
  c.plain("M32", kS, kS, {1564672, 0, 64, 4032, 0, 0},
          [](auto q, auto kv) { return (q / 128 == kv / 128) | (q % 128 == kv % 128); });
  auto isNear = [](auto a, auto b, int64_t size, int64_t width) {
    return abs(clamp(a, width / 2, size - 1 - width / 2) - b) <= width / 2;
  };
  auto neighborhood = [isNear](int64_t height, int64_t width) {
    return [=](auto q, auto kv) {
      return isNear(q / width, kv / width, height, 13) & isNear(q % width, kv % width, width, 13);
    };
  };
  c.plain("M34", kS, kS, {1384448, 3264, 0, 832, 0, 0}, neighborhood(64, 128));
  c.plain("M34b", 8190, 8190, {1384110, 3402, 0, 694, 0, 0}, neighborhood(90, 91));
  c.plain("M35", kS, kS, {1204224, 3568, 0, 528, 0, 0}, [isNear](auto q, auto kv) {
    return isNear(q / 1024, kv / 1024, 8, 3) & isNear(q / 32 % 32, kv / 32 % 32, 32, 7) &
           isNear(q % 32, kv % 32, 32, 7);
  });
  c.plain("M37", kS, kS, {320000, 3824, 0, 272, 0, 0}, [](auto q, auto kv) {
    auto qy = q / 32 % 32, ky = kv / 32 % 32, qx = q % 32, kx = kv % 32;
    return (q / 1024 == kv / 1024) & (qy % 2 == ky % 2) & (qx % 2 == kx % 2) & (abs(qy - ky) <= 6) &
           (abs(qx - kx) <= 6);
  });
  c.plain("M38", kS, kS, {1384448, 3612, 0, 484, 0, 0}, [isNear](auto q, auto kv) {
    auto x = [](auto i) { return i / 128 % 8 * 16 + i % 128 % 16; };
    auto y = [](auto i) { return i / 128 / 8 * 8 + i % 128 / 16; };
    return isNear(y(q), y(kv), 64, 13) & isNear(x(q), x(kv), 128, 13);
  });
  c.plain("M40", kS, kS, {18874368, 2944, 1152, 0, 0, 0}, [](auto q, auto kv) {
    auto qt = q / 256, kt = kv / 256;
    return (qt / 16 == kt / 16) & (abs(clamp(qt / 4 % 4, 1, 2) - kt / 4 % 4) <= 1) &
           (abs(clamp(qt % 4, 1, 2) - kt % 4) <= 1);
  });
  c.plain("M41", kS, kS, {524288, 3584, 0, 512, 0, 0}, [](auto q, auto kv) {
    auto windowOf = [](auto i) { return i / 128 / 8 * 16 + i % 128 / 8; };
    return windowOf(q) == windowOf(kv);
  });
  c.plain("M43", 6976, 6976, {32160670, 992, 1903, 130, 0, 0},
          [](auto q, auto kv) { return (kv < 226) | (q < 226) | (abs(q - kv) < 2688); });
  c.plain("M45", kS, kS, {38986752, 968, 1800, 1328, 0, 0}, [](auto q, auto kv) {
    auto distance = max(abs(q / 512 - kv / 512), number(q, 1));
    return (kv < 512) | (abs(q % 512 - kv % 512) < number(q, 512) >> ilog2(distance));
  });
}

void addDocuments(Collector &c) {
  auto withDocuments = [](TapeBuilder &b) { return Table(b, documentIds(kLengths)); };
  c.add("M16", kS, kS, {12434760, 3200, 693, 203, 0, 0},
        [&](TapeBuilder &b) { return [doc = withDocuments(b)](auto q, auto kv) { return doc(q) == doc(kv); }; });
  c.add("M17", kS, kS, {6221476, 3616, 318, 162, 0, 0}, [&](TapeBuilder &b) {
    return [doc = withDocuments(b)](auto q, auto kv) { return (doc(q) == doc(kv)) & (kv <= q); };
  });
  c.add("M17b", kS, kS, {6221476, 3616, 318, 162, 0, 0}, [&](TapeBuilder &b) {
    return [start = Table(b, documentStarts())](auto q, auto kv) { return (kv >= start(q)) & (kv <= q); };
  });
  c.add("M17c", kS, kS, {6221476, 3616, 318, 162, 0, 0}, [&](TapeBuilder &b) {
    return [doc = withDocuments(b), off = Table(b, kOffsets)](auto q, auto kv) {
      return (doc(q) == doc(kv)) & (q - off(doc(q)) >= kv - off(doc(kv)));
    };
  });
  c.add("M19", kS, kS, {3249612, 3824, 132, 140, 0, 0}, [&](TapeBuilder &b) {
    return [doc = withDocuments(b)](auto q, auto kv) { return (doc(q) == doc(kv)) & (kv <= q) & (q - kv < 512); };
  });
  c.add("M20", kS, kS, {31155000, 2169, 1863, 64, 0, 2192}, [&](TapeBuilder &b) {
    return [length = Table(b, {6000})](auto q, auto kv) { return (kv <= q) & (kv < length(number(q, 0))); };
  });
  c.add("M20b", kS, kS, {18003000, 2968, 1035, 93, 2192, 2192}, [&](TapeBuilder &b) {
    return [length = Table(b, {6000})](auto q, auto kv) {
      return (kv <= q) & (kv < length(number(q, 0))) & (q < length(number(q, 0)));
    };
  });
  c.add("M21", kS, kS, {22394778, 2665, 1326, 105, 1500, 1500}, [&](TapeBuilder &b) {
    return [pad = Table(b, {1500})](auto q, auto kv) { return (kv <= q) & (kv >= pad(number(q, 0))); };
  });
  c.add("M23", 1024, kS, {2870208, 261, 146, 105, 0, 0}, [&](TapeBuilder &b) {
    return [qDoc = Table(b, documentIds({100, 300, 50, 574})),
            kvDoc = Table(b, documentIds({1000, 4000, 500, 2692}))](auto q, auto kv) { return qDoc(q) == kvDoc(kv); };
  });
  c.add("M25", kS, kS, {10259733, 3354, 502, 240, 0, 0}, [&](TapeBuilder &b) {
    return [doc = withDocuments(b), off = Table(b, kOffsets), prefixOf = Table(b, {0, 0, 0, 3, 3, 3, 3, 3})](auto q,
                                                                                                             auto kv) {
      auto own = doc(q);
      auto prefix = prefixOf(own);
      return ((kv >= off(own)) & (kv <= q)) | ((own != prefix) & (off(prefix) <= kv) & (kv < off(prefix + 1)));
    };
  });
  c.add("M57", kS, kS, {34712076, 1934, 2088, 74, 0, 0}, [&](TapeBuilder &b) {
    return [span = Table(b, imageSpans())](auto q, auto kv) {
      return (kv <= q) | ((span(q) == span(kv)) & (span(q) >= 0));
    };
  });
}

void addTables(Collector &c) {
  c.add("M14", kS, kS, {1296300, 2016, 0, 2080, 0, 0}, [](TapeBuilder &b) {
    return [vertical = Flags(b, flagsOf(kS, [](int64_t i) { return hashed(i) % 64 == 0; })),
            slash = Flags(b, flagsOf(kS, [](int64_t i) { return i < 64 || hashed(i + 77777) % 128 == 0; }))](
               auto q, auto kv) { return (kv <= q) & (vertical(kv) | slash(q - kv)); };
  });
  c.add("M27", kS, kS, {5254920, 2890, 190, 1016, 0, 0}, [](TapeBuilder &b) {
    return [isGlobal = Flags(b, flagsOf(kS, [](int64_t i) { return i < 64 || i % 1024 == 0; }))](auto q, auto kv) {
      return (abs(q - kv) <= 256) | isGlobal(q) | isGlobal(kv);
    };
  });
  c.add("M29", kS, kS, {10027008, 3484, 612, 0, 0, 0}, [](TapeBuilder &b) {
    std::vector<uint8_t> random(64 * 64);
    for (int64_t i = 0; i < 64; ++i)
      for (int64_t t = 0; t < 3; ++t)
        random[i * 64 + hashed(i * 131 + t * 7919) % 64] = 1;
    return [random = Flags(b, random, 64)](auto q, auto kv) {
      auto qBlock = q / 128, kvBlock = kv / 128;
      return (abs(qBlock - kvBlock) <= 1) | (qBlock < 2) | (kvBlock < 2) | random(qBlock, kvBlock);
    };
  });
  c.add("M51", 64, 8256, {524616, 0, 64, 1, 0, 0}, [](TapeBuilder &b) {
    std::vector<uint8_t> ancestors(64 * 64);
    for (int64_t i = 0; i < 64; ++i)
      for (int64_t node = i;; node = (node - 1) / 2) {
        ancestors[i * 64 + node] = 1;
        if (node == 0)
          break;
      }
    return [ancestors = Flags(b, ancestors, 64)](auto q, auto kv) {
      return (kv < 8192) | ((kv >= 8192) & (kv < 8192 + 64) & ancestors(q, clamp(kv - 8192, 0, 63)));
    };
  });
  c.add("M54", 4096, kS, {8419328, 1488, 496, 64, 0, 8}, [](TapeBuilder &b) {
    return [anchor = Table(b, numbersOf(512, [](int64_t i) { return 8 * i + hashed(i) % 8; }))](auto q, auto kv) {
      return ((kv < 4096) & (kv < anchor(q / 8))) | ((kv >= 4096) & ((kv - 4096) / 8 == q / 8));
    };
  });
  c.add("M60", kS, kS, {7391104, 2054, 36, 2006, 0, 0}, [](TapeBuilder &b) {
    std::vector<uint8_t> gate(kS * 64);
    for (int64_t q = 0; q < kS; ++q)
      for (int64_t j = 0; j <= q / 128; ++j) {
        int64_t blocks = q / 128;
        gate[q * 64 + j] = j == blocks || blocks <= 8 || hashed(q * 64 + j) % blocks < 7;
      }
    return [gate = Flags(b, gate, 64)](auto q, auto kv) { return (kv <= q) & gate(q, kv / 128); };
  });
  c.add("M61", kS, kS, {8327168, 2686, 0, 1410, 0, 0}, [](TapeBuilder &b) {
    return [map = Flags(b, flagsOf(128 * 128, [](int64_t i) { return i / 128 == i % 128 || hashed(i) % 128 < 15; }),
                        128)](auto q, auto kv) { return map(q / 64, kv / 64); };
  });
  c.add("M64", kS, kS, {528400, 2016, 0, 2080, 0, 0}, [](TapeBuilder &b) {
    return [bucket = Table(b, numbersOf(kS, [](int64_t i) { return hashed(i) % 64; }))](auto q, auto kv) {
      return (kv <= q) & (bucket(q) == bucket(kv));
    };
  });
  c.add("M65", kS, kS, {2080768, 3969, 127, 0, 0, 0}, [](TapeBuilder &b) {
    return [bucket = Table(b, numbersOf(kS, [](int64_t i) { return i / 128; }))](auto q, auto kv) {
      return (bucket(q) == bucket(kv)) | (bucket(q) == bucket(kv) + 1);
    };
  });
  c.add("M68", 1024, kS, {7864832, 28, 476, 8, 0, 0}, [](TapeBuilder &b) {
    return [page = Table(b, numbersOf(64, [](int64_t i) { return (i * 37 + 11) % 64; }))](auto q, auto kv) {
      return page(kv / 128) * 128 + kv % 128 <= q + 7168;
    };
  });
}

} // namespace

std::vector<CatalogueCase> catalogue() {
  Collector collector;
  addPositional(collector);
  addGrids(collector);
  addDocuments(collector);
  addTables(collector);
  return std::move(collector.cases);
}

} // namespace cpflex::test
