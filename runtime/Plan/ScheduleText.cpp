// Prints and reads `cp` text; see ScheduleText.h. Words are those of the other forms; numbers with a fraction keep all
// their digits.
#include "runtime/Plan/ScheduleText.h"
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/VerifySchedule.h"

#include <cctype>
#include <charconv>
#include <fmt/format.h>
#include <iterator>

namespace cpflex {
namespace {

constexpr ElementType kCallTypes[] = {ElementType::F32, ElementType::BF16, ElementType::F16};

/// A number that reads back as itself and has a point, as MLIR's float literals do.
std::string realText(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find('.') == std::string::npos) {
    size_t exponent = text.find('e');
    text.insert(exponent == std::string::npos ? text.size() : exponent, ".0");
  }
  return text;
}

std::string rangeText(Range range) { return fmt::format("{} to {}", range.begin, range.end); }

std::string rowsText(const std::vector<OwnedRows> &list) {
  std::string text = "[";
  for (const OwnedRows &rows : list)
    fmt::format_to(std::back_inserter(text), "{}owner {} rows {}", text.size() == 1 ? "" : ", ", rows.owner,
                   rangeText(rows.rows));
  return text + "]";
}

void printLayout(std::string &out, const char *tensor, const Layout &layout) {
  fmt::format_to(std::back_inserter(out), "  cp.layout {} \"{}\" length {} rows {} {{\n", tensor, toString(layout.kind),
                 layout.length, layout.rows);
  for (int64_t row = 0; row < layout.rows; ++row)
    for (int32_t rank = 0; rank < layout.worldSize; ++rank) {
      fmt::format_to(std::back_inserter(out), "    cp.shard row {} rank {} [", row, rank);
      const char *separator = "";
      for (const AffinePiece &piece : layout.shards[size_t(row * layout.worldSize + rank)].pieces) {
        fmt::format_to(std::back_inserter(out), "{}begin {} count {}", separator, piece.begin, piece.count);
        if (piece.step != 1)
          fmt::format_to(std::back_inserter(out), " step {}", piece.step);
        separator = ", ";
      }
      out += "]\n";
    }
  out += "  }\n";
}

/// Reads tokens one at a time and remembers the first fault with its place.
class Reader {
public:
  explicit Reader(std::string_view text) : text_(text) { advance(); }

  const Status &status() const { return status_; }
  bool isOk() const { return status_.isOk(); }
  bool isAt(std::string_view token) const { return isOk() && token_ == token; }

  void fail(const std::string &message) {
    if (isOk())
      status_ = Status::invalid(fmt::format("{}:{}: {}", line_, column_, message));
  }
  bool accept(std::string_view token) {
    if (!isAt(token))
      return false;
    advance();
    return true;
  }
  void expect(std::string_view token) {
    if (!accept(token))
      fail(fmt::format("{} found; expected '{}'", shown(), token));
  }
  int64_t integer() {
    int64_t value = 0;
    auto [end, error] = std::from_chars(token_.data(), token_.data() + token_.size(), value);
    if (error != std::errc() || end != token_.data() + token_.size())
      fail(fmt::format("{} found; expected an integer", shown()));
    else
      advance();
    return value;
  }
  int32_t smallInteger() {
    int64_t value = integer();
    if (value < 0 || value > INT32_MAX)
      fail(fmt::format("{} found; expected a number of 31 bits", value));
    return int32_t(value);
  }
  double real() {
    double value = 0;
    auto [end, error] = std::from_chars(token_.data(), token_.data() + token_.size(), value);
    if (error != std::errc() || end != token_.data() + token_.size())
      fail(fmt::format("{} found; expected a number", shown()));
    else
      advance();
    return value;
  }
  Range range() {
    int64_t begin = integer();
    expect("to");
    return {begin, integer()};
  }
  int64_t named(std::string_view name) {
    expect(name);
    return integer();
  }
  /// A quoted word that `lookUp` knows.
  template <typename LookUp> auto word(LookUp &&lookUp, std::string_view what) {
    auto found = token_.size() >= 2 && token_.front() == '"' ? lookUp(token_.substr(1, token_.size() - 2))
                                                             : decltype(lookUp(token_)){};
    if (!found) {
      fail(fmt::format("{} found; expected a {} in quotes", shown(), what));
      return typename decltype(found)::value_type{};
    }
    advance();
    return *found;
  }
  /// A bracketed list; `element` reads one entry.
  template <typename Element> void list(Element &&element) {
    expect("[");
    if (accept("]"))
      return;
    do
      element();
    while (isOk() && accept(","));
    expect("]");
  }
  std::string shown() const { return token_.empty() ? "end of text" : fmt::format("'{}'", token_); }
  std::string_view token() const { return token_; }
  void advance();

private:
  std::string_view text_, token_;
  size_t position_ = 0;
  int line_ = 1, column_ = 1, nextLine_ = 1;
  size_t lineBegin_ = 0;
  Status status_;
};

void Reader::advance() {
  auto isWord = [](char c) { return std::isalnum(uint8_t(c)) || c == '_' || c == '.' || c == '-' || c == '+'; };
  for (; position_ < text_.size(); ++position_) {
    char c = text_[position_];
    if (c == '\n') {
      ++nextLine_;
      lineBegin_ = position_ + 1;
    } else if (text_.substr(position_, 2) == "//") {
      while (position_ + 1 < text_.size() && text_[position_ + 1] != '\n')
        ++position_;
    } else if (!std::isspace(uint8_t(c))) {
      break;
    }
  }
  line_ = nextLine_;
  column_ = int(position_ - lineBegin_) + 1;
  size_t end = position_;
  if (end < text_.size() && text_[end] == '"') {
    end = text_.find_first_of("\"\n", end + 1);
    end = end == std::string_view::npos ? text_.size() : end + 1;
  } else if (end < text_.size() && isWord(text_[end])) {
    while (end < text_.size() && isWord(text_[end]))
      ++end;
  } else if (end < text_.size()) {
    ++end;
  }
  token_ = text_.substr(position_, end - position_);
  position_ = end;
}

void readCall(Reader &reader, CallShape &shape) {
  shape.batch = reader.named("batch");
  shape.qHeads = reader.named("q_heads");
  shape.kvHeads = reader.named("kv_heads");
  shape.qLen = reader.named("q_len");
  shape.kvLen = reader.named("kv_len");
  shape.headDim = reader.named("head_dim");
  shape.vHeadDim = reader.named("v_head_dim");
  reader.expect("type");
  for (ElementType type : kCallTypes)
    if (reader.accept(toString(type))) {
      shape.type = type;
      return;
    }
  reader.fail(fmt::format("{} found; expected 'f32', 'bf16' or 'f16'", reader.shown()));
}

void readLayout(Reader &reader, Schedule &schedule, Layout &layout) {
  layout.worldSize = schedule.worldSize;
  layout.kind = reader.word(layoutKindFromString, "layout");
  layout.length = reader.named("length");
  layout.rows = reader.named("rows");
  reader.expect("{");
  while (reader.accept("cp.shard")) {
    int64_t row = reader.named("row"), rank = reader.named("rank");
    if (row * layout.worldSize + rank != int64_t(layout.shards.size()))
      reader.fail(
          fmt::format("shard of row {} and rank {} found; expected shards in order of row, then rank", row, rank));
    PositionMap map;
    reader.list([&] {
      AffinePiece piece;
      piece.begin = reader.named("begin");
      piece.count = reader.named("count");
      if (reader.accept("step"))
        piece.step = reader.integer();
      map.pieces.push_back(piece);
    });
    layout.shards.push_back(std::move(map));
  }
  reader.expect("}");
}

std::vector<OwnedRows> readRows(Reader &reader) {
  std::vector<OwnedRows> rows;
  reader.list([&] {
    reader.expect("owner");
    int32_t owner = reader.smallInteger();
    reader.expect("rows");
    rows.push_back({owner, reader.range()});
  });
  return rows;
}

void readTransfer(Reader &reader, Schedule &schedule) {
  Transfer transfer;
  reader.expect("step");
  transfer.step = reader.smallInteger();
  reader.expect("from");
  transfer.source = reader.smallInteger();
  reader.expect("to");
  transfer.destination = reader.smallInteger();
  transfer.payload = reader.word(payloadFromString, "payload");
  transfer.sizeInBytes = reader.named("bytes");
  reader.list([&] {
    Slab slab;
    reader.expect("owner");
    slab.owner = reader.smallInteger();
    reader.expect("batch");
    slab.batch = reader.range();
    reader.expect("heads");
    slab.heads = reader.range();
    reader.expect("rows");
    slab.rows = reader.range();
    transfer.slabs.push_back(slab);
  });
  schedule.transfers.push_back(std::move(transfer));
}

void readCompute(Reader &reader, Schedule &schedule) {
  Compute compute;
  reader.expect("step");
  compute.step = reader.smallInteger();
  reader.expect("rank");
  compute.rank = reader.smallInteger();
  reader.expect("batch");
  compute.batch = reader.range();
  reader.expect("heads");
  compute.heads = reader.range();
  reader.expect("work");
  compute.work = reader.real();
  reader.expect("q");
  compute.q = readRows(reader);
  reader.expect("kv");
  compute.kv = readRows(reader);
  schedule.computes.push_back(std::move(compute));
}

void readCertificate(Reader &reader, Certificate &certificate) {
  reader.expect("{");
  while (reader.accept("cp.load")) {
    RankLoad load;
    if (int64_t rank = reader.named("rank"); rank != int64_t(certificate.ranks.size()))
      reader.fail(fmt::format("load of rank {} found; expected rank {}", rank, certificate.ranks.size()));
    reader.expect("work");
    load.work = reader.real();
    load.bytesSent = reader.named("sent");
    load.bytesReceived = reader.named("received");
    load.bytesNeeded = reader.named("needed");
    load.peakBytes = reader.named("peak");
    certificate.ranks.push_back(load);
  }
  reader.expect("cp.bounds");
  reader.expect("work");
  certificate.workBound = reader.real();
  certificate.receivedBound = reader.named("received");
  certificate.receivedBoundWorst = reader.named("worst");
  reader.expect("cp.predicted");
  reader.expect("seconds");
  certificate.predictedSeconds = reader.real();
  reader.expect("}");
}

} // namespace

std::string toText(const Schedule &schedule) {
  const CallShape &shape = schedule.shape;
  std::string out =
      fmt::format("cp.schedule {} \"{}\" \"{}\" ranks {} steps {} {{\n", toString(schedule.pass),
                  toString(schedule.rotation), toString(schedule.keyOrder), schedule.worldSize, schedule.numSteps);
  auto print = [&]<typename... Values>(fmt::format_string<Values...> format, Values &&...values) {
    fmt::format_to(std::back_inserter(out), format, std::forward<Values>(values)...);
  };
  print("  cp.call batch {} q_heads {} kv_heads {} q_len {} kv_len {} head_dim {} v_head_dim {} type {}\n", shape.batch,
        shape.qHeads, shape.kvHeads, shape.qLen, shape.kvLen, shape.headDim, shape.vHeadDim, toString(shape.type));
  printLayout(out, "q", schedule.qLayout);
  if (schedule.kvLayout == schedule.qLayout)
    out += "  cp.layout kv same\n";
  else
    printLayout(out, "kv", schedule.kvLayout);
  for (const Transfer &transfer : schedule.transfers) {
    print("  cp.transfer step {} from {} to {} \"{}\" bytes {} [", transfer.step, transfer.source, transfer.destination,
          toString(transfer.payload), transfer.sizeInBytes);
    const char *separator = "";
    for (const Slab &slab : transfer.slabs) {
      print("{}owner {} batch {} heads {} rows {}", separator, slab.owner, rangeText(slab.batch), rangeText(slab.heads),
            rangeText(slab.rows));
      separator = ", ";
    }
    out += "]\n";
  }
  for (const Compute &compute : schedule.computes)
    print("  cp.compute step {} rank {} batch {} heads {} work {} q {} kv {}\n", compute.step, compute.rank,
          rangeText(compute.batch), rangeText(compute.heads), realText(compute.work), rowsText(compute.q),
          rowsText(compute.kv));
  out += "  cp.certificate {\n";
  for (size_t rank = 0; rank < schedule.certificate.ranks.size(); ++rank) {
    const RankLoad &load = schedule.certificate.ranks[rank];
    print("    cp.load rank {} work {} sent {} received {} needed {} peak {}\n", rank, realText(load.work),
          load.bytesSent, load.bytesReceived, load.bytesNeeded, load.peakBytes);
  }
  print("    cp.bounds work {} received {} worst {}\n", realText(schedule.certificate.workBound),
        schedule.certificate.receivedBound, schedule.certificate.receivedBoundWorst);
  print("    cp.predicted seconds {}\n  }}\n}}\n", realText(schedule.certificate.predictedSeconds));
  return out;
}

StatusOr<Schedule> fromText(std::string_view text) {
  Reader reader(text);
  Schedule schedule;
  reader.expect("cp.schedule");
  schedule.pass = reader.isAt("backward") ? Pass::Backward : Pass::Forward;
  if (!reader.accept("forward") && !reader.accept("backward"))
    reader.fail(fmt::format("{} found; expected 'forward' or 'backward'", reader.shown()));
  schedule.rotation = reader.word(rotationFromString, "rotation");
  schedule.keyOrder = reader.word(keyOrderFromString, "key order");
  reader.expect("ranks");
  schedule.worldSize = reader.smallInteger();
  reader.expect("steps");
  schedule.numSteps = reader.smallInteger();
  reader.expect("{");
  reader.expect("cp.call");
  readCall(reader, schedule.shape);
  reader.expect("cp.layout");
  reader.expect("q");
  readLayout(reader, schedule, schedule.qLayout);
  reader.expect("cp.layout");
  reader.expect("kv");
  if (reader.accept("same"))
    schedule.kvLayout = schedule.qLayout;
  else
    readLayout(reader, schedule, schedule.kvLayout);
  while (reader.accept("cp.transfer"))
    readTransfer(reader, schedule);
  while (reader.accept("cp.compute"))
    readCompute(reader, schedule);
  reader.expect("cp.certificate");
  readCertificate(reader, schedule.certificate);
  reader.expect("}");
  if (reader.isOk() && !reader.token().empty())
    reader.fail(fmt::format("{} found; expected the end of the text", reader.shown()));
  if (!reader.isOk())
    return reader.status();
  if (Status status = verifySchedule(schedule); !status)
    return Status::invalid(fmt::format("1:1: {}", status.message()));
  return schedule;
}

} // namespace cpflex
