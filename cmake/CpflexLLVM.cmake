# Finds LLVM and MLIR 22 and defines how targets link them: `cpflex_link_mlir(target libs...)`.
find_package(MLIR 22.1 REQUIRED CONFIG PATHS /usr/lib/llvm-22 NO_DEFAULT_PATH)
list(APPEND CMAKE_MODULE_PATH "${MLIR_CMAKE_DIR}" "${LLVM_CMAKE_DIR}")
include(TableGen)
include(AddLLVM)
include(AddMLIR)
include_directories(SYSTEM ${LLVM_INCLUDE_DIRS} ${MLIR_INCLUDE_DIRS})
include_directories(SYSTEM "${PROJECT_BINARY_DIR}")

if(CPFLEX_STATIC_LLVM)
  llvm_map_components_to_libnames(components Core Support Passes Target TargetParser OrcJIT OrcShared OrcTargetProcess
    OrcDebugging PerfJITEvents ExecutionEngine JITLink RuntimeDyld IRReader BitReader BitWriter Linker Analysis
    TransformUtils ipo InstCombine Vectorize ScalarOpts FrontendOpenMP X86CodeGen X86AsmParser X86Desc X86Info)
  add_library(cpflex_llvm INTERFACE)
  target_link_libraries(cpflex_llvm INTERFACE ${components})
  # MLIR's exported archives name the shared LLVM library; point them at the archives instead.
  get_property(mlir_libs GLOBAL PROPERTY MLIR_ALL_LIBS)
  foreach(lib IN LISTS mlir_libs)
    if(TARGET ${lib})
      get_target_property(deps ${lib} INTERFACE_LINK_LIBRARIES)
      if(deps)
        list(TRANSFORM deps REPLACE "^LLVM$" "cpflex_llvm")
        list(REMOVE_ITEM deps MLIR)
        set_target_properties(${lib} PROPERTIES INTERFACE_LINK_LIBRARIES "${deps}")
      endif()
    endif()
  endforeach()
  set_property(TARGET MLIRExecutionEngine APPEND PROPERTY INTERFACE_LINK_LIBRARIES
    MLIRBuiltinToLLVMIRTranslation MLIRExecutionEngineUtils MLIRLLVMDialect MLIRLLVMToLLVMIRTranslation
    MLIRTargetLLVMIRExport)
  # Drops the shared libz3, zlib and zstd.
  set_target_properties(LLVMSupport PROPERTIES INTERFACE_LINK_LIBRARIES
    "rt;dl;m;/usr/lib/x86_64-linux-gnu/libz.a;/usr/lib/x86_64-linux-gnu/libzstd.a;LLVMDemangle")
  add_link_options(-static-libstdc++ -static-libgcc -Wl,-O2 -Wl,--icf=all -s)
endif()

# Links MLIR into an executable or test: the named archives in a static build, the shared libraries otherwise.
function(cpflex_link_mlir target)
  if(CPFLEX_STATIC_LLVM)
    target_link_libraries(${target} PRIVATE ${ARGN} cpflex_llvm)
  else()
    target_link_libraries(${target} PRIVATE MLIR LLVM)
  endif()
endfunction()
