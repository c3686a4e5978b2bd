/* What is between the products of small conv nets (unfolded.py), each image once through the cache.

   Images [n, side, side, c], each of them a net's next image until the next net's begin; of an
   image, windows [steps, steps, k, k, c], pad zeros around it. All inner loops run over a row of
   numbers that lie side by side, and no order of additions is left to the compiler. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Zeros, at the beginning of a cache line. */
static float *room(long n) {
    long size = (n * sizeof(float) + 63) / 64 * 64;
    float *x = aligned_alloc(64, size);
    if (x) memset(x, 0, size);
    return x;
}

/* Means over the channels of a group and all positions, from a row's sums [side, c]: in row [c]. */
static void means(float *restrict row, long side, long c, long groups) {
    long own = c / groups;
    for (long w = 1; w < side; w++)
        for (long i = 0; i < c; i++) row[i] += row[w * c + i];
    for (long j = 0; j < c; j += own) {
        float sum = 0;
        for (long i = 0; i < own; i++) sum += row[j + i];
        for (long i = 0; i < own; i++) row[j + i] = sum / (side * side * own);
    }
}

/* A row's first [c] in all its places. */
static void spread(float *restrict row, long side, long c) {
    for (long w = 1; w < side; w++) memcpy(row + w * c, row, c * sizeof *row);
}

/* Windows out of images y; where groups > 0, of what normalisation and ReLU make of y + bias, bias
   [n / each, c]. Normalised is (y - mean) * rate, both [n, side, c]: norm. 0 without memory. */
int windows(const float *restrict y, const float *restrict bias, float *restrict out,
            float *restrict norm, long n, long each, long side, long c, long groups, long k,
            long stride, long pad) {
    long row = side * c, all = side + 2 * pad, wide = all * c, run = k * c;
    long steps = (all - k) / stride + 1;
    float *restrict mean = norm, *restrict rate = norm + n * row;
    float *x = room(all * wide);
    if (!x) return 0;
    for (long image = 0; image < n; image++, y += side * row) {
        if (groups) {
            const float *restrict own = bias + image / each * c;
            for (long j = 0; j < row; j++) mean[j] = rate[j] = 0;
            for (long h = 0; h < side; h++)
                for (long j = 0; j < row; j++) mean[j] += y[h * row + j];
            for (long j = 0; j < c; j++) mean[j] += side * side * own[j];
            means(mean, side, c, groups);
            for (long j = 0; j < c; j++) mean[j] -= own[j];
            spread(mean, side, c);
            for (long h = 0; h < side; h++)
                for (long j = 0; j < row; j++) {
                    float d = y[h * row + j] - mean[j];
                    rate[j] += d * d;
                }
            means(rate, side, c, groups);
            for (long j = 0; j < c; j++) rate[j] = 1 / sqrtf(rate[j] + 1e-5f);
            spread(rate, side, c);
        }
        for (long h = 0; h < side; h++) {
            const float *restrict from = y + h * row;
            float *restrict to = x + (h + pad) * wide + pad * c;
            if (!groups) memcpy(to, from, row * sizeof *to);
            else
                for (long j = 0; j < row; j++) {
                    float d = (from[j] - mean[j]) * rate[j];
                    to[j] = d < 0 ? 0 : d; /* NaN stays */
                }
        }
        for (long a = 0; a < steps; a++)
            for (long b = 0; b < steps; b++)
                for (long h = 0; h < k; h++, out += run) {
                    const float *restrict from = x + (a * stride + h) * wide + b * stride * c;
                    for (long j = 0; j < run; j++) out[j] = from[j];
                }
        if (groups) mean += row, rate += row;
    }
    free(x);
    return 1;
}

/* The gradient of y, written over y, from that of its windows; bias: its sums. 0 without memory. */
int back(float *restrict y, float *restrict bias, const float *restrict g,
         const float *restrict norm, long n, long each, long side, long c, long groups, long k,
         long stride, long pad) {
    long row = side * c, all = side + 2 * pad, wide = all * c, run = k * c;
    long steps = (all - k) / stride + 1;
    const float *restrict mean = norm, *restrict rate = norm + n * row;
    float *x = room(all * wide + 3 * row);
    if (!x) return 0;
    float *restrict sum = x + all * wide, *restrict dot = sum + row, *restrict total = dot + row;
    for (long image = 0; image < n; image++, y += side * row, mean += row, rate += row) {
        memset(x, 0, (all * wide + 2 * row) * sizeof *x);
        if (image % each == 0) memset(total, 0, row * sizeof *total);
        for (long a = 0; a < steps; a++)
            for (long b = 0; b < steps; b++)
                for (long h = 0; h < k; h++, g += run) {
                    float *restrict to = x + (a * stride + h) * wide + b * stride * c;
                    for (long j = 0; j < run; j++) to[j] += g[j];
                }
        for (long h = 0; h < side; h++) {
            float *restrict in = x + (h + pad) * wide + pad * c;
            for (long j = 0; j < row; j++) {
                float d = (y[h * row + j] - mean[j]) * rate[j], own = d <= 0 ? 0 : in[j];
                in[j] = own;
                sum[j] += own;
                dot[j] += own * d;
            }
        }
        means(sum, side, c, groups);
        means(dot, side, c, groups);
        spread(sum, side, c);
        spread(dot, side, c);
        for (long h = 0; h < side; h++) {
            const float *restrict in = x + (h + pad) * wide + pad * c;
            for (long j = 0; j < row; j++) {
                float d = (y[h * row + j] - mean[j]) * rate[j];
                y[h * row + j] = d = (in[j] - sum[j] - d * dot[j]) * rate[j];
                total[j] += d;
            }
        }
        if ((image + 1) % each == 0) {
            memset(bias, 0, c * sizeof *bias);
            for (long w = 0; w < row; w += c)
                for (long j = 0; j < c; j++) bias[j] += total[w + j];
            bias += c;
        }
    }
    free(x);
    return 1;
}
