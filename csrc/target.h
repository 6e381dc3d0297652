// The means to compile a part of a file for one instruction set.
//
// Only what lies between IIAE_TARGET_BEGIN and IIAE_TARGET_END is compiled for it, inside an anonymous namespace: nothing that
// another file might share, such as a function of the standard library, ever is.
#pragma once

#define IIAE_INLINE __attribute__((always_inline)) inline
#define IIAE_INLINE_LAMBDA __attribute__((always_inline))
#define IIAE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define IIAE_TARGET_BEGIN(features) IIAE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define IIAE_TARGET_END IIAE_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define IIAE_TARGET_BEGIN(features) IIAE_PRAGMA(GCC push_options) IIAE_PRAGMA(GCC target(features))
#define IIAE_TARGET_END IIAE_PRAGMA(GCC pop_options)
#endif
