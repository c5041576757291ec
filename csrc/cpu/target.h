// Compiles the code between BEGIN and END for an instruction set that the baseline lacks. Standard
// headers must be included before BEGIN, so that no shared inline function gets those instructions.
#pragma once

#define ROTNET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ROTNET_TARGET_BEGIN(features) \
  ROTNET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ROTNET_TARGET_END _Pragma("clang attribute pop")
#else
#define ROTNET_TARGET_BEGIN(features) _Pragma("GCC push_options") ROTNET_PRAGMA(GCC target(features))
#define ROTNET_TARGET_END _Pragma("GCC pop_options")
#endif
