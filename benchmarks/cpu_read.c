/* How fast memory can be read: every thread adds up its share, in several streams side by side. */

#include <omp.h>
#include <stdint.h>

#define LINE 16   /* floats */
#define SUMS 4    /* lines added up side by side, so that no addition waits for the one before */
#define AHEAD 128 /* lines */

float read_streams(const float *numbers, int64_t count, int streams, int threads) {
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        int64_t each = count / omp_get_num_threads() / streams / (LINE * SUMS) * (LINE * SUMS);
        const float *share = numbers + omp_get_thread_num() * each * streams;
        float sum[SUMS][LINE] = {{0}};
        for (int64_t i = 0; i < each; i += LINE * SUMS)
            for (int stream = 0; stream < streams; stream++) {
                const float *lines = share + stream * each + i;
                for (int s = 0; s < SUMS; s++) {
                    __builtin_prefetch(lines + (AHEAD + s) * LINE);
                    for (int j = 0; j < LINE; j++) sum[s][j] += lines[s * LINE + j];
                }
            }
        for (int s = 0; s < SUMS; s++)
            for (int j = 0; j < LINE; j++) total += sum[s][j];
    }
    return total;
}
