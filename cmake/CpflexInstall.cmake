# What `cmake --install` puts where: tools, library, headers, the standard library as text, and how CMake and pkg-config
# find them. Everything is relative to the prefix, so that an installed tree may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The shared LLVM and MLIR of a build with them lie outside of the loader's path.
set_target_properties(cpflex cpflexc cpflex-opt PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS cpflexc cpflex-opt RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(TARGETS cpflex EXPORT cpflexTargets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" "${CMAKE_INSTALL_INCLUDEDIR}/cpflex")
if(TARGET cpflex_mpi)
  install(TARGETS cpflex_mpi LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()

# The public headers, and below them, under the names by which cpflex.h includes them, the headers of its plain data.
set(headers "${CMAKE_INSTALL_INCLUDEDIR}/cpflex")
install(FILES lib/API/cpflex.h lib/API/cpflex.c.h lib/API/DLPack.h DESTINATION "${headers}")
install(FILES lib/Frontend/Diagnostic.h lib/Frontend/Source.h DESTINATION "${headers}/lib/Frontend")
install(FILES runtime/Files/Npy.h runtime/Files/WholeFile.h DESTINATION "${headers}/runtime/Files")
foreach(name BlockMaskAlgebra BlockMaskBuilder BlockMaskFile BlockMaskPicture BlockMaskStatistics CaptureSummaries
             IndexLists KeepWords MaskImports)
  install(FILES runtime/BlockMask/${name}.h DESTINATION "${headers}/runtime/BlockMask")
endforeach()
foreach(name CallbackCommunicator Communicator ThreadsCommunicator)
  install(FILES runtime/Comm/${name}.h DESTINATION "${headers}/runtime/Comm")
endforeach()
install(FILES runtime/Executor/RunReport.h DESTINATION "${headers}/runtime/Executor")
foreach(name Planner ScheduleText ShardArrays)
  install(FILES runtime/Plan/${name}.h DESTINATION "${headers}/runtime/Plan")
endforeach()
foreach(name Attention Bindings BlockMask DeviceFunctions HostFunctions KernelArguments Layout PositionMap Range Residual
             Schedule Status Tape)
  install(FILES runtime/contract/${name}.h DESTINATION "${headers}/runtime/contract")
endforeach()
install(FILES runtime/contract/Operations.def DESTINATION "${headers}/runtime/contract")

file(GLOB standard_files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/lib/Std/*.cpf")
install(FILES ${standard_files} DESTINATION "${CMAKE_INSTALL_DATADIR}/cpflex/std")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/cpflex")

set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/cpflex")
install(EXPORT cpflexTargets NAMESPACE cpflex:: DESTINATION "${package_folder}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cpflexConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
configure_file(cmake/cpflexConfig.cmake.in "${PROJECT_BINARY_DIR}/cpflexConfig.cmake" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/cpflexConfig.cmake" "${PROJECT_BINARY_DIR}/cpflexConfigVersion.cmake"
  DESTINATION "${package_folder}")
configure_file(cmake/cpflex.pc.in "${PROJECT_BINARY_DIR}/cpflex.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/cpflex.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
