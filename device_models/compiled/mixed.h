/* A plan with micro-batches, and those of a step. */

#ifndef PIMSERVE_MIXED_H
#define PIMSERVE_MIXED_H

#include "steps.h"

#define MOST_PARTS 16 /* as in scheduler/compiled_steps.py */

/* Visits that are alike: layers of each, and whether it calls for routed experts. */
typedef struct {
    fs_t visits, layers;
    int routed;
} Round;

/* Micro-batches of a step with at least so many tokens. */
typedef struct {
    fs_t from_tokens, number;
} Cut;

typedef struct {
    PyObject_HEAD Serial serial;
    Round *rounds;
    Py_ssize_t n_rounds;
    fs_t visits, routed_visits, layers, closing_layers; /* of a pass */
    Cut *cuts;                                          /* MicroBatches.cuts */
    Py_ssize_t n_cuts;
    Py_ssize_t most_parts;
    Rows *rows, *once; /* of each micro-batch; of what runs once for all */
    Py_ssize_t n_rows, n_once;
    PyObject *pools; /* by tokens: (pool_size, routed visits) */
    fs_t pool_size, thousandths, fine_tokens, octave_bits;
    fs_t most; /* of a stage's time in a visit: sums over a pass fit then */
} MixedSteps;

/* Routed experts of a micro-batch: between two pools, as ExpertPools.layer_times_fs. */
typedef struct {
    Py_buffer low, high;
    fs_t above;
    int bits, held;
} Routed;

/* A micro-batch: times at each stage, fs, by round, or, of experts, by visit; what of the experts is beside the routed
   ones, by round; and attention without that of layers, by round, and at the end. */
typedef struct {
    fs_t *attention, *dispatch, *experts, *combine, *beside, *rows;
    fs_t closing, rows_closing;
    Routed routed;
    fs_t *room; /* of the first: what all of these point to */
} Stages;

Py_ssize_t parts_of(const MixedSteps *mixed, fs_t tokens);
Py_ssize_t split(const MixedSteps *mixed, const Shape *whole, Shape *parts);
Py_ssize_t split_decodes(const MixedSteps *mixed, fs_t requests, fs_t context, Shape *parts);

int stages_read(const MixedSteps *mixed, const Shape *parts, Py_ssize_t count, Stages *stages);
void stages_release(Stages *stages, Py_ssize_t count);
int stages_fs(const MixedSteps *mixed, Stages *stages, Py_ssize_t count, fs_t outcome, const fs_t *layer_fs,
              fs_t *into);

#endif
