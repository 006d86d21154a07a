/* How fast memory can be read: every thread adds up its share, in several streams side by side. */

#include <omp.h>
#include <stdint.h>

#define LINE 16 /* floats */

float read_streams(const float *numbers, int64_t count, int streams, int threads) {
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        int64_t each = count / omp_get_num_threads() / streams / LINE * LINE;
        const float *share = numbers + omp_get_thread_num() * each * streams;
        float sum[LINE] = {0};
        for (int64_t i = 0; i < each; i += LINE)
            for (int stream = 0; stream < streams; stream++) {
                const float *line = share + stream * each + i;
                __builtin_prefetch(line + 32 * LINE);
                for (int j = 0; j < LINE; j++) sum[j] += line[j];
            }
        for (int j = 0; j < LINE; j++) total += sum[j];
    }
    return total;
}
