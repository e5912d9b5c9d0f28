// SHA-256 against the vectors of FIPS 180-4 and NIST's examples.
#include "runtime/Cuda/Sha256.h"

#include <gtest/gtest.h>

namespace cpflex {

TEST(Sha256, EmptyText) { EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"); }

TEST(Sha256, OneBlock) { EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); }

TEST(Sha256, TextThatNeedsASecondBlockForItsLength) {
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256, AMillionLettersInPieces) {
  Sha256 digest;
  std::string piece(997, 'a');
  for (int i = 0; i < 1003; ++i)
    digest.add(piece);
  digest.add(std::string(1000000 - 997 * 1003, 'a'));
  EXPECT_EQ(digest.finish(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, FieldsDoNotRunTogether) {
  Sha256 first, second;
  first.addField("ab"), first.addField("c");
  second.addField("a"), second.addField("bc");
  EXPECT_NE(first.finish(), second.finish());
}

} // namespace cpflex
