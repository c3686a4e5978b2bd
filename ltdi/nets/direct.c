/* Logits and gradients of small conv nets (direct.py), some images of one net at a time, in the cache.

   Numbers lie as [positions, images, channels], kernels as [positions, channels in, channels out],
   the last dimension filled up with zeros to whole vectors. So each pass of a convolution is a sum of
   products of matrices, one for every two positions that meet; zeros around an image are left out.
   Only what the first layer sees lies as [positions, channels, images]. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined __AVX512F__
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif
/* Rows of two vectors that the registers hold. */
#if defined __AVX512F__ || defined __aarch64__
#define MOST 10
#else
#define MOST 6
#endif
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct { /* a [rows, depth], b [depth, columns] */
    const float *a, *b;
} pair;
typedef struct { /* from one number of a to the next, and from one row of b */
    long row, next, depth, wide;
} steps;

/* Rows of a block are variables with names: compilers leave an array in memory. */
#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9)
#define AT(p) (*(vec *)(p))
#define LOAD(i) \
    vec p##i = {0}, q##i = {0}; \
    if (i < m) p##i = AT(from + i * pitch); \
    if (i < m && two) q##i = AT(from + i * pitch + LANES);
#define ADD(i) \
    if (i < m) p##i += a[i * s.row] * v; \
    if (i < m && two) q##i += a[i * s.row] * w;
#define STORE(i) \
    if (i < m) AT(to + i * s.wide) = p##i; \
    if (i < m && two) AT(to + i * s.wide + LANES) = q##i;

INLINE void block(const long m, const int two, float *to, float *from, long pitch,
                  const pair *pairs, long count, long row, long column, steps s) {
    ROWS(LOAD)
    for (long n = 0; n < count; n++) {
        const float *a = pairs[n].a + row * s.row, *b = pairs[n].b + column;
        for (long k = 0; k < s.depth; k++, a += s.next, b += s.wide) {
            vec v = AT(b), w = two ? AT(b + LANES) : v;
            ROWS(ADD)
        }
    }
    ROWS(STORE)
}

#define CASE(m) \
    case m: \
        if (two) block(m, 1, out, in, pitch, pairs, count, row, column, s); \
        else block(m, 0, out, in, pitch, pairs, count, row, column, s); \
        break;

/* to [rows, wide] = from + the sum of a b over pairs; rows of `from` are `pitch` apart. */
static void product(float *to, long rows, float *from, long pitch, const pair *pairs, long count,
                    steps s) {
    long parts = (rows + MOST - 1) / MOST, each = (rows + parts - 1) / parts;
    for (long column = 0, two; column < s.wide; column += two ? 2 * LANES : LANES) {
        two = column + LANES < s.wide;
        for (long row = 0; row < rows; row += each) {
            float *out = to + row * s.wide + column, *in = from + row * pitch + column;
            switch (rows - row < each ? rows - row : each) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MOST > 6
                CASE(7) CASE(8) CASE(9) CASE(10)
#endif
            }
        }
    }
}

typedef struct {
    long side, in, out, kernel, stride, pad, groups; /* groups: 0 for the head */
    long steps, row, wide; /* outputs are [steps, steps]; channels in and out with zeros */
    long image, next, apart; /* from one image of x to another, and channel, and position */
    float *x, *y, *rate;   /* input; output, normalised; what that was divided by */
    float *kernels, *turned, *bias; /* as given, and [positions, out, row] */
    float *slopes, *fall;           /* gradients of kernels and bias */
    float *same;                    /* [wide, wide]: mean over a group and all positions */
} layer;

typedef struct {
    long images;
    float *zeros, *room; /* a row; four times the images of the widest layer */
    pair *pairs;
} work;

/* Which of a pair's positions a matrix belongs to, and how far apart matrices are. */
enum { OUT, TAP, IN };
typedef struct {
    float *at;
    long each;
    int of;
} operand;

#define RANGE(v, fixed, n) (long v = fixed < 0 ? 0 : fixed; v < (fixed < 0 ? n : fixed + 1); v++)

/* Pairs for one position `at` of outputs, kernel or inputs, whichever is `fixed`. */
INLINE long meeting(const layer *l, int fixed, long at, operand a, operand b, pair *pairs) {
    long found = 0, k = l->kernel, out = l->steps, side = l->side;
    long oh = -1, ow = -1, kh = -1, kw = -1, ih = -1, iw = -1;
    if (fixed == OUT) oh = at / out, ow = at % out;
    if (fixed == TAP) kh = at / k, kw = at % k;
    if (fixed == IN) ih = at / side, iw = at % side;
    for RANGE(h, oh, out)
        for RANGE(i, kh, k) {
            long y = h * l->stride + i - l->pad;
            if (y < 0 || y >= side || (ih >= 0 && y != ih)) continue;
            for RANGE(w, ow, out)
                for RANGE(j, kw, k) {
                    long x = w * l->stride + j - l->pad;
                    if (x < 0 || x >= side || (iw >= 0 && x != iw)) continue;
                    long index[] = {h * out + w, i * k + j, y * side + x};
                    pairs[found].a = a.at + index[a.of] * a.each;
                    pairs[found++].b = b.at + index[b.of] * b.each;
                }
        }
    return found;
}

/* One pass of a convolution: to [count, rows, wide] for all `count` positions of a kind. Each starts
   with the row `from`, or, without one, with what is there. */
INLINE void pass(const layer *l, int fixed, long count, float *to, long rows, float *from, operand a,
                 operand b, steps s, const work *w) {
    for (long at = 0; at < count; at++, to += rows * s.wide) {
        long found = meeting(l, fixed, at, a, b, w->pairs);
        product(to, rows, from ? from : to, from ? 0 : s.wide, w->pairs, found, s);
    }
}

/* Means over groups of channels, from sums over positions [images, wide]. */
static void means(const layer *l, float *to, float *sums, const work *w) {
    pair one = {sums, l->same};
    product(to, w->images, w->zeros, 0, &one, 1, (steps){l->wide, 1, l->wide, l->wide});
}

/* Output, and with it y [positions, images, wide] normalised and x what of it is positive. */
static void forward(const layer *l, float *positive, const work *w) {
    long n = w->images * l->wide, positions = l->steps * l->steps;
    operand a = {l->x, l->apart, IN}, b = {l->kernels, l->in * l->wide, TAP};
    pass(l, OUT, positions, l->y, w->images, l->bias, a, b, (steps){l->image, l->next, l->in, l->wide}, w);
    if (!l->groups) return;
    float *restrict sum = w->room, *restrict mean = sum + n, *restrict rate = l->rate;
    memset(sum, 0, n * sizeof *sum);
    for (long p = 0; p < positions; p++)
        for (long j = 0; j < n; j++) sum[j] += l->y[p * n + j];
    means(l, mean, sum, w);
    memset(sum, 0, n * sizeof *sum);
    for (long p = 0; p < positions; p++) {
        float *restrict y = l->y + p * n;
        for (long j = 0; j < n; j++) {
            y[j] -= mean[j];
            sum[j] += y[j] * y[j];
        }
    }
    means(l, rate, sum, w);
    for (long j = 0; j < n; j++) rate[j] = 1 / sqrtf(rate[j] + 1e-5f);
    for (long p = 0; p < positions; p++) {
        float *restrict y = l->y + p * n, *restrict x = positive + p * n;
        for (long j = 0; j < n; j++) {
            float d = y[j] * rate[j];
            y[j] = d;
            x[j] = d < 0 ? 0 : d; /* NaN stays */
        }
    }
}

/* Gradients of kernels (added from the second time on) and bias (added), and over x its own, from
   that of what is positive, or, for the head, of the output: g, written over. */
static void backward(const layer *l, float *restrict g, int first, int again, const work *w) {
    long n = w->images * l->wide, positions = l->steps * l->steps;
    float *restrict sum = w->room, *restrict dot = sum + n, *restrict mean = dot + n;
    float *restrict part = mean + n, *restrict rate = l->rate, *restrict fall = l->fall;
    if (l->groups) {
        memset(sum, 0, 2 * n * sizeof *sum);
        for (long p = 0; p < positions; p++) {
            float *restrict y = l->y + p * n, *restrict to = g + p * n;
            for (long j = 0; j < n; j++) {
                float own = y[j] <= 0 ? 0 : to[j];
                to[j] = own;
                sum[j] += own;
                dot[j] += own * y[j];
            }
        }
        means(l, mean, sum, w);
        means(l, part, dot, w);
        for (long p = 0; p < positions; p++) {
            float *restrict y = l->y + p * n, *restrict to = g + p * n;
            for (long j = 0; j < n; j++) to[j] = (to[j] - mean[j] - y[j] * part[j]) * rate[j];
        }
    }
    memset(sum, 0, n * sizeof *sum);
    for (long p = 0; p < positions; p++)
        for (long j = 0; j < n; j++) sum[j] += g[p * n + j];
    for (long i = 0; i < n; i += l->wide)
        for (long j = 0; j < l->wide; j++) fall[j] += sum[i + j];
    operand a = {l->x, l->apart, IN}, b = {g, n, OUT}, c = {l->turned, l->out * l->row, TAP};
    pass(l, TAP, l->kernel * l->kernel, l->slopes, l->in, again ? 0 : w->zeros, a, b,
         (steps){l->next, l->image, w->images, l->wide}, w);
    if (!first) /* nobody asks for the images' gradient */
        pass(l, IN, l->side * l->side, l->x, w->images, w->zeros, b, c,
             (steps){l->wide, 1, l->out, l->row}, w);
}

/* Logits y [images, wide] are replaced by the gradient of the cross entropy. */
static void wrong(const layer *l, long images, const float *target, const float *share, float mean) {
    for (long i = 0; i < images; i++, target += l->out) {
        float *y = l->y + i * l->wide, most = y[0], sum = 0;
        for (long j = 1; j < l->out; j++) most = y[j] > most ? y[j] : most;
        for (long j = 0; j < l->out; j++) sum += y[j] = expf(y[j] - most);
        for (long j = 0; j < l->out; j++)
            y[j] = (y[j] / sum - target[j]) * (share ? share[i] : mean);
    }
}

/* Rows of n numbers, `apart` from each other here and `pitch` there. */
static void copy(float *to, long apart, const float *from, long pitch, long rows, long n) {
    for (long i = 0; i < rows; i++) memcpy(to + i * apart, from + i * pitch, n * sizeof *to);
}

static long wide(long n) { return (n + LANES - 1) / LANES * LANES; }

/* The next n numbers of an arena, at the beginning of a cache line. */
static float *take(float *arena, long *used, long n) {
    float *found = arena ? arena + *used : 0;
    *used += (n + 15) / 16 * 16;
    return found;
}

/* Divides an arena among layers and work, for so many images at a time; its size. The numbers before
   `zero` are to be zero. */
static long divide(float *arena, layer *first, layer *head, work *w, long images, long *zero) {
    long used = 0, widest = 0, pairs = 0;
    for (layer *l = first; l <= head; l++) {
        long taps = l->kernel * l->kernel, n = l->steps * l->steps * taps;
        if (l->wide > widest) widest = l->wide;
        if (n > pairs) pairs = n;
        l->kernels = take(arena, &used, taps * l->in * l->wide);
        l->turned = take(arena, &used, l > first ? taps * l->out * l->row : 0);
        l->bias = take(arena, &used, l->wide);
    }
    w->zeros = take(arena, &used, widest);
    *zero = used;
    w->room = take(arena, &used, 4 * images * widest);
    w->pairs = (pair *)take(arena, &used, pairs * (sizeof(pair) / sizeof(float)));
    for (layer *l = first; l <= head; l++) {
        long n = l->steps * l->steps * images * l->wide;
        l->slopes = take(arena, &used, l->kernel * l->kernel * l->in * l->wide);
        l->fall = take(arena, &used, l->wide);
        l->y = take(arena, &used, n);
        if (l == head) break;
        l[1].x = take(arena, &used, n);
        l->rate = take(arena, &used, images * l->wide);
        l->same = take(arena, &used, l->wide * l->wide);
    }
    return used;
}

/* Logits of nets [nets, all, out], or, with `found`, gradients of their mean cross entropy.

   Numbers of a layer are side, in, out, kernel, stride, pad and groups; the last one is the head.
   Parts are kernels [nets, kernel, kernel, in, out] and biases [nets, out] of each, and so is what is
   found. x [nets, side, side, in, all]; target [nets, all, out]; share [nets, all], or none for a mean.
   `some` images go through a net together. 0 without memory. */
int nets(long nets, long all, long some, long layers, const long *numbers, float *const *parts,
         float *const *found, float *x, const float *target, const float *share,
         float *logits) {
    layer *first = calloc(layers, sizeof *first), *head = first + layers - 1;
    work w;
    long zero;
    if (some > all) some = all;
    for (layer *l = first; first && l <= head; l++, numbers += 7) {
        memcpy(l, numbers, 7 * sizeof *numbers);
        l->steps = (l->side + 2 * l->pad - l->kernel) / l->stride + 1;
        l->row = wide(l->in);
        l->image = l > first ? l->row : 1;
        l->next = l > first ? 1 : all;
        l->wide = wide(l->out);
    }
    float *arena = first ? aligned_alloc(64, divide(0, first, head, &w, some, &zero) * sizeof *x) : 0;
    if (!arena) return free(first), 0;
    divide(arena, first, head, &w, some, &zero);
    memset(arena, 0, zero * sizeof *arena);
    for (layer *l = first; l < head; l++)
        for (long i = 0, own = l->out / l->groups; i < l->wide; i++)
            for (long j = 0; j < l->wide; j++) {
                int same = i < l->out && j < l->out && i / own == j / own;
                l->same[i * l->wide + j] = same ? 1.0 / (own * l->steps * l->steps) : 0;
            }
    for (long net = 0; net < nets; net++, x += first->side * first->side * all * first->in) {
        for (layer *l = first; l <= head; l++) {
            long i = 2 * (l - first), taps = l->kernel * l->kernel, rows = taps * l->in;
            float *given = parts[i] + net * rows * l->out;
            if (l->out == l->wide) l->kernels = given;
            else copy(l->kernels, l->wide, given, l->out, rows, l->out);
            if (found && l->out == l->wide) l->slopes = found[i] + net * rows * l->out;
            copy(l->bias, l->wide, parts[i + 1] + net * l->out, l->out, 1, l->out);
            memset(l->fall, 0, l->wide * sizeof *l->fall);
            for (long t = 0; found && l > first && t < taps; t++)
                for (long j = 0; j < l->out; j++)
                    for (long k = 0; k < l->in; k++)
                        l->turned[(t * l->out + j) * l->row + k] =
                            l->kernels[(t * l->in + k) * l->wide + j];
        }
        for (long at = 0; at < all; at += w.images) {
            w.images = all - at < some ? all - at : some;
            first->x = x + at;
            for (layer *l = first; l <= head; l++) {
                l->apart = l > first ? w.images * l->row : all * l->in;
                forward(l, l < head ? l[1].x : 0, &w);
            }
            if (!found) {
                copy(logits, head->out, head->y, head->wide, w.images, head->out);
                logits += w.images * head->out;
                continue;
            }
            wrong(head, w.images, target + (net * all + at) * head->out,
                  share ? share + net * all + at : 0, 1.0f / all);
            for (layer *l = head; l >= first; l--)
                backward(l, l < head ? l[1].x : l->y, l == first, at > 0, &w);
        }
        for (layer *l = first; found && l <= head; l++) {
            long i = 2 * (l - first), rows = l->kernel * l->kernel * l->in;
            if (l->out != l->wide)
                copy(found[i] + net * rows * l->out, l->out, l->slopes, l->wide, rows, l->out);
            copy(found[i + 1] + net * l->out, l->out, l->fall, l->wide, 1, l->out);
        }
    }
    free(arena), free(first);
    return 1;
}
