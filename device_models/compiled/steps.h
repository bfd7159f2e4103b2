/* What the compiled part of the package shares: whole numbers, and steps of devices that run operators in turn. */

#ifndef PIMSERVE_STEPS_H
#define PIMSERVE_STEPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef int64_t fs_t;    /* femtoseconds, and counts */
typedef __int128 wide_t; /* their products */

#define KINDS 7 /* of rows, in the order of step.row_counts */

/* Up to these, products of two are within 64 bit, and those with a time within 128. */
#define MOST_COUNT ((fs_t)1 << 40)   /* of requests, of tokens */
#define MOST_OF_PLAN ((fs_t)1 << 20) /* of layers, of groups, of steps of a span */

typedef struct {
    fs_t slope, window;
} Windowed;

/* serial.WayCosts */
typedef struct {
    fs_t slope, per_request;
    Windowed *windowed;
    Py_ssize_t n_windowed;
    int beside_prefill;
} Way;

/* serial.SerialTiming */
typedef struct {
    Way *ways;
    Py_ssize_t n_ways;
    fs_t data_parallel, verify_tokens;
} Serial;

/* Of step.StepShape, what times follow from. */
typedef struct {
    fs_t decodes, context, prefill, chunks, outputs, busiest, prefill_fs;
} Shape;

/* Times of row terms of a kind, a mapping by count. */
typedef struct {
    int kind, busiest;
    PyObject *times;
} Rows;

static inline fs_t ceil_div(fs_t a, fs_t b)
{
    return (a + b - 1) / b;
}

/* CostPlan.sampled */
static inline fs_t sampled(const Serial *serial, const Shape *shape)
{
    return serial->verify_tokens == 1 ? shape->outputs : serial->verify_tokens * shape->decodes + shape->chunks;
}

/* Those that return int give -1 with an exception set. */
int too_great(void);
int narrow(wide_t value, fs_t *into);
int as_fs(PyObject *number, fs_t *into);
int as_count(PyObject *number, fs_t most, fs_t *into);
int in_range(fs_t value, fs_t least, fs_t most);
int is_tuple(PyObject *given);
PyObject *from_wide(wide_t value);
PyObject *or_none(PyObject *found);
PyObject *at_count(PyObject *mapping, fs_t count);
int fs_at_count(PyObject *mapping, fs_t count, fs_t *into);

int serial_read(Serial *serial, PyObject *ways);
void serial_free(Serial *serial);
int serial_layers_fs(const Serial *serial, const Shape *shape, fs_t *into);
int serial_decode_span(const Serial *serial, fs_t requests, fs_t context, fs_t *first, fs_t *growth, fs_t *steps);

void counts_of(const Serial *serial, const Shape *shape, fs_t every[KINDS], fs_t busiest[KINDS]);
int rows_read(PyObject *given, Rows **into, Py_ssize_t *count);
void rows_free(Rows *rows, Py_ssize_t count);

PyObject *span_new(fs_t steps, fs_t busiest_tokens, fs_t first_fs, fs_t growth_fs, PyObject *experts, fs_t at);

extern PyTypeObject *span_type;
extern PyType_Spec mixed_steps_spec, serial_steps_spec, span_spec;

#endif
