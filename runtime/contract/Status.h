// How the runtime reports a fault of the world: one value that says what failed and what to do. Located mistakes of the
// user are MLIR diagnostics and belong to lib/; lib/API converts both into one form.
#pragma once

#include <cassert>
#include <string>
#include <utility>
#include <variant>

namespace cpflex {

/// What kind of fault a Status carries; the command line derives its exit code from it.
enum class StatusCode {
  Ok,
  InvalidArgument,  ///< The caller's value is wrong (exit 1).
  Unsupported,      ///< The request is well formed, but nothing here serves it (exit 3).
  Unavailable,      ///< A library, device, file or peer is missing or failed (exit 3).
  OutOfMemory,      ///< Host or device memory is exhausted (exit 3).
  DeadlineExceeded, ///< A wait outlasted its deadline (exit 3).
  DataLoss,         ///< Stored or transferred bytes are damaged (exit 3).
};

/// The outcome of a call: ok, or a code with a message in lower case without a final period.
class [[nodiscard]] Status {
public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok() { return {}; }
  static Status invalid(std::string message) { return {StatusCode::InvalidArgument, std::move(message)}; }
  static Status unsupported(std::string message) { return {StatusCode::Unsupported, std::move(message)}; }
  static Status unavailable(std::string message) { return {StatusCode::Unavailable, std::move(message)}; }

  bool isOk() const { return code_ == StatusCode::Ok; }
  explicit operator bool() const { return isOk(); }
  StatusCode code() const { return code_; }
  const std::string &message() const { return message_; }

private:
  StatusCode code_ = StatusCode::Ok;
  std::string message_;
};

/// A value or the Status that says why there is none.
template <typename T> class [[nodiscard]] StatusOr {
public:
  StatusOr(T value) : state_(std::move(value)) {}
  StatusOr(Status status) : state_(std::move(status)) {
    assert(!this->status().isOk() && "an ok StatusOr needs a value");
  }

  bool isOk() const { return std::holds_alternative<T>(state_); }
  explicit operator bool() const { return isOk(); }
  Status status() const { return isOk() ? Status::ok() : std::get<Status>(state_); }
  T &operator*() { return std::get<T>(state_); }
  const T &operator*() const { return std::get<T>(state_); }
  T *operator->() { return &std::get<T>(state_); }
  const T *operator->() const { return &std::get<T>(state_); }

private:
  std::variant<T, Status> state_;
};

} // namespace cpflex

/// Returns from the enclosing function when `expression` is a Status that is not ok.
#define CPFLEX_RETURN_IF_ERROR(expression)                                                                             \
  do {                                                                                                                 \
    if (::cpflex::Status cpflexStatus = (expression); !cpflexStatus.isOk())                                            \
      return cpflexStatus;                                                                                             \
  } while (false)
