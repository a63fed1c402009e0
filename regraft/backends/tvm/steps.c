/* Runs the steps of a program, which table.py lays out as words of 64 bits.
 *
 * Linked into the shared object of each program's kernels: between two kernels there is no Python, whose code
 * and data a large model drives out of all caches. Needs no header, and is C as well as C++.
 */

typedef long long word;

/* TVMFFIAny of tvm-ffi's C ABI: an argument or result of a kernel. */
typedef struct {
    int type;
    unsigned zero;
    word value;
} Any;

/* TVMFFISafeCallType of the same: not 0 upon failure. */
typedef int (*Kernel)(void *self, const Any *arguments, int count, Any *result);

enum { CALL = 0, BRANCH = 1, COPY = 2 };

/* The step between first and end that failed, or 0. A step begins with its kind and its length in words. */
static const word *run_between(const word *first, const word *end) {
    const word *step;
    for (step = first; step != end; step += step[1]) {
        if (step[0] == CALL) { /* kernel, number of arguments, arguments */
            Any result = {0, 0, 0};
            Kernel kernel = (Kernel)step[2];
            if (kernel(0, (const Any *)(step + 4), (int)step[3], &result)) return step;
        } else if (step[0] == BRANCH) { /* address of a bool, length of the steps where it is true, both arms */
            const word *then = step + 4;
            const word *otherwise = then + step[3];
            const word *failed = *(const char *)step[2] ? run_between(then, otherwise)
                                                        : run_between(otherwise, step + step[1]);
            if (failed) return failed;
        } else { /* COPY: from, to, bytes */
            __builtin_memmove((void *)step[3], (const void *)step[2], (unsigned long)step[4]);
        }
    }
    return 0;
}

#ifdef __cplusplus
extern "C"
#endif
__attribute__((visibility("default"))) const word *regraft_run_steps(const word *first, const word *end) {
    return run_between(first, end);
}
