/* Is the public header C11, and can a C program call it? */
#include "lib/API/DLPack.h"
#include "lib/API/cpflex.c.h"

/* The number of entry points of a program text, or -1 when it does not compile. */
int numEntriesFromC(const char *text, size_t size) {
  cpflex_compile_options options = {0};
  options.abi_version = CPFLEX_ABI_VERSION;
  cpflex_program *program = NULL;
  cpflex_error *error = cpflex_compile_text("c.cpf", text, size, &options, &program);
  if (error) {
    cpflex_error_free(error);
    return -1;
  }
  const int count = (int)cpflex_program_num_entries(program);
  cpflex_program_free(program);
  return count;
}
