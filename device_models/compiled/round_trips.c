/* How long micro-batches take at each stage, and the schedule of these: RowTimes.of, MicroBatches.part,
   ExpertPools.layer_times_fs and round_trips.schedule_fs. */

#include "mixed.h"

static int get_pool(const MixedSteps *mixed, fs_t tokens, Py_buffer *view)
{
    PyObject *pool = at_count(mixed->pools, tokens);
    if (!pool)
        return -1;
    int failed = PyObject_GetBuffer(pool, view, PyBUF_C_CONTIGUOUS);
    Py_DECREF(pool);
    if (failed)
        return -1;
    if (view->itemsize == sizeof(fs_t) && view->len == view->itemsize * mixed->pool_size * mixed->routed_visits)
        return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "a pool has an entry of 64 bit for each outcome and MoE layer");
    return -1;
}

/* routing.pool_bucket, and the pools. */
static int routed_read(const MixedSteps *mixed, fs_t tokens, Routed *routed)
{
    fs_t low = tokens;
    routed->bits = 0;
    if (tokens > mixed->fine_tokens) {
        routed->bits = 63 - __builtin_clzll((unsigned long long)tokens) - (int)mixed->octave_bits;
        low = tokens >> routed->bits << routed->bits;
    }
    routed->above = tokens - low;
    if (get_pool(mixed, low, &routed->low) < 0)
        return -1;
    routed->held = 1;
    if (!routed->above)
        return 0;
    if (get_pool(mixed, low + ((fs_t)1 << routed->bits), &routed->high) < 0)
        return -1;
    routed->held = 2;
    return 0;
}

/* Row terms of a micro-batch that are of one kind. */
static int add_rows(const MixedSteps *mixed, PyObject *times, Stages *stages)
{
    Py_ssize_t n = mixed->n_rounds;
    fs_t *of[4] = {stages->rows, stages->dispatch, stages->beside, stages->combine};
    if (!PyList_Check(times) || PyList_GET_SIZE(times) != 4 * n + 1) {
        PyErr_SetString(PyExc_TypeError, "times of rows are four of each round, and what comes last");
        return -1;
    }
    for (Py_ssize_t i = 0; i <= 4 * n; i++) {
        fs_t time;
        if (as_fs(PyList_GET_ITEM(times, i), &time) < 0)
            return -1;
        if (time < 0 || time > mixed->most / (2 * mixed->n_rows)) /* so that with routed experts it is not beyond */
            return too_great();
        *(i == 4 * n ? &stages->rows_closing : of[i / n] + i % n) += time;
    }
    return 0;
}

static int rows_of(const MixedSteps *mixed, const Shape *part, Stages *stages)
{
    fs_t every[KINDS], busiest[KINDS];
    counts_of(&mixed->serial, part, every, busiest);
    for (Py_ssize_t r = 0; r < mixed->n_rows; r++) {
        const Rows *rows = mixed->rows + r;
        PyObject *times = at_count(rows->times, (rows->busiest ? busiest : every)[rows->kind]);
        if (!times)
            return -1;
        int failed = add_rows(mixed, times, stages);
        Py_DECREF(times);
        if (failed)
            return -1;
    }
    return 0;
}

/* What of the parts is the same in all steps that have them; not to be released where it fails. */
int stages_read(const MixedSteps *mixed, const Shape *parts, Py_ssize_t count, Stages *stages)
{
    size_t n = (size_t)mixed->n_rounds, of_part = 5 * n + (size_t)mixed->visits;
    memset(stages, 0, (size_t)count * sizeof(Stages));
    if (!count)
        return 0;
    fs_t *room = stages->room = PyMem_Calloc((size_t)count * of_part + 1, sizeof(fs_t));
    if (!room) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t p = 0; p < count; p++) {
        Stages *here = stages + p;
        here->attention = room + (size_t)p * of_part;
        here->dispatch = here->attention + n;
        here->combine = here->dispatch + n;
        here->beside = here->combine + n;
        here->rows = here->beside + n;
        here->experts = here->rows + n;
        if (rows_of(mixed, parts + p, here) < 0 ||
            routed_read(mixed, mixed->serial.verify_tokens * parts[p].decodes + parts[p].prefill, &here->routed) < 0) {
            stages_release(stages, count);
            return -1;
        }
    }
    return 0;
}

void stages_release(Stages *stages, Py_ssize_t count)
{
    for (Py_ssize_t p = 0; p < count; p++) {
        if (stages[p].routed.held > 0)
            PyBuffer_Release(&stages[p].routed.low);
        if (stages[p].routed.held > 1)
            PyBuffer_Release(&stages[p].routed.high);
    }
    if (count)
        PyMem_Free(stages->room);
}

/* Attention, of a layer of which takes so long beside row terms. */
static int attention_of(const MixedSteps *mixed, fs_t layer_fs, Stages *stages)
{
    for (Py_ssize_t i = 0; i < mixed->n_rounds; i++) {
        wide_t time = stages->rows[i] + (wide_t)mixed->rounds[i].layers * layer_fs;
        if (time > mixed->most)
            return too_great();
        stages->attention[i] = (fs_t)time;
    }
    wide_t closing = stages->rows_closing + (wide_t)mixed->closing_layers * layer_fs;
    if (closing > mixed->most)
        return too_great();
    stages->closing = (fs_t)closing;
    return 0;
}

/* Experts' devices in an outcome, at the speed of slowdown.slow_fs. */
static int experts_of(const MixedSteps *mixed, fs_t outcome, Stages *stages)
{
    const Routed *routed = &stages->routed;
    const fs_t *low = (const fs_t *)routed->low.buf + outcome * mixed->routed_visits;
    const fs_t *high = routed->held > 1 ? (const fs_t *)routed->high.buf + outcome * mixed->routed_visits : low;
    fs_t *experts = stages->experts;
    for (Py_ssize_t i = 0; i < mixed->n_rounds; i++)
        for (fs_t left = mixed->rounds[i].visits; left; left--, experts++) {
            *experts = stages->beside[i];
            if (!mixed->rounds[i].routed)
                continue;
            wide_t time = *low;
            if (routed->above)
                time += ((wide_t)*high - *low) * routed->above >> routed->bits;
            if (mixed->thousandths != 1000)
                time = (time * mixed->thousandths + 500) / 1000;
            if (time < 0 || time > mixed->most / 2)
                return too_great();
            *experts += (fs_t)time;
            low++;
            high++;
        }
    return 0;
}

static fs_t greater(fs_t one, fs_t other)
{
    return one > other ? one : other;
}

static fs_t schedule(const MixedSteps *mixed, const Stages *stages, Py_ssize_t count)
{
    fs_t attention = 0, dispatch = 0, experts = 0, combine = 0, back[MOST_PARTS] = {0}; /* until when each is taken */
    Py_ssize_t visit = 0;
    for (Py_ssize_t i = 0; i < mixed->n_rounds; i++)
        for (fs_t left = mixed->rounds[i].visits; left; left--, visit++)
            for (Py_ssize_t p = 0; p < count; p++) {
                attention = greater(attention, back[p]) + stages[p].attention[i];
                dispatch = greater(dispatch, attention) + stages[p].dispatch[i];
                experts = greater(experts, dispatch) + stages[p].experts[visit];
                combine = back[p] = greater(combine, experts) + stages[p].combine[i];
            }
    for (Py_ssize_t p = 0; p < count; p++)
        attention = greater(attention, back[p]) + stages[p].closing;
    return attention;
}

/* Time of the step whose first micro-batch takes that outcome, if attention of a layer takes so long in each. */
int stages_fs(const MixedSteps *mixed, Stages *stages, Py_ssize_t count, fs_t outcome, const fs_t *layer_fs, fs_t *into)
{
    for (Py_ssize_t p = 0; p < count; p++)
        if (attention_of(mixed, layer_fs[p], stages + p) < 0 ||
            experts_of(mixed, (outcome + p) % mixed->pool_size, stages + p) < 0)
            return -1;
    *into = schedule(mixed, stages, count);
    return 0;
}
