/* What MixedCosts asks for in each step: how long it takes, or when the steps end in which nobody comes or goes. */

#include "mixed.h"

static int read_cuts(MixedSteps *self, PyObject *given)
{
    self->n_cuts = PyTuple_GET_SIZE(given);
    self->cuts = PyMem_Calloc((size_t)self->n_cuts + 1, sizeof(Cut));
    if (!self->cuts) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < self->n_cuts; i++) {
        long long from_tokens, number;
        if (!is_tuple(PyTuple_GET_ITEM(given, i)) ||
            !PyArg_ParseTuple(PyTuple_GET_ITEM(given, i), "LL", &from_tokens, &number))
            return -1;
        if (number < 1 || number > MOST_PARTS) {
            PyErr_Format(PyExc_ValueError, "1 to %d micro-batches", MOST_PARTS);
            return -1;
        }
        self->cuts[i] = (Cut){from_tokens, number};
        if (self->most_parts < number)
            self->most_parts = (Py_ssize_t)number;
    }
    if (self->most_parts)
        return 0;
    PyErr_SetString(PyExc_ValueError, "steps are cut into at least one micro-batch");
    return -1;
}

static int read_rounds(MixedSteps *self, PyObject *given)
{
    self->n_rounds = PyTuple_GET_SIZE(given);
    self->rounds = PyMem_Calloc((size_t)self->n_rounds + 1, sizeof(Round));
    if (!self->rounds) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < self->n_rounds; i++) {
        long long visits, layers;
        if (!is_tuple(PyTuple_GET_ITEM(given, i)) ||
            !PyArg_ParseTuple(PyTuple_GET_ITEM(given, i), "LLp", &visits, &layers, &self->rounds[i].routed) ||
            in_range(visits, 1, MOST_OF_PLAN - self->visits) < 0 || in_range(layers, 0, MOST_OF_PLAN) < 0)
            return -1;
        self->rounds[i].visits = visits;
        self->rounds[i].layers = layers;
        self->visits += visits;
        self->routed_visits += self->rounds[i].routed ? visits : 0;
    }
    return 0;
}

static int read_plan(MixedSteps *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"rounds",        "closing_layers", "layers",      "cuts",        "data_parallel",
                            "verify_tokens", "ways",           "rows",        "once",        "pools",
                            "pool_size",     "thousandths",    "fine_tokens", "octave_bits", NULL};
    PyObject *rounds, *cuts, *ways, *rows, *once, *pools;
    long long closing, layers, data_parallel, verify_tokens, pool_size, thousandths, fine_tokens, octave_bits;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!LLO!LLO!O!O!OLLLL", names, &PyTuple_Type, &rounds, &closing,
                                     &layers, &PyTuple_Type, &cuts, &data_parallel, &verify_tokens, &PyTuple_Type,
                                     &ways, &PyTuple_Type, &rows, &PyTuple_Type, &once, &pools, &pool_size,
                                     &thousandths, &fine_tokens, &octave_bits))
        return -1;
    if (layers < 1 || pool_size < 1) {
        PyErr_SetString(PyExc_ValueError, "a layer and an outcome are needed");
        return -1;
    }
    if (fine_tokens < 1 || octave_bits < 0 || octave_bits > 20 || fine_tokens >> octave_bits == 0) {
        PyErr_SetString(PyExc_ValueError, "above fine tokens, an octave has as many pools as its bits say");
        return -1;
    }
    if (in_range(closing, 0, MOST_OF_PLAN) < 0 || in_range(layers, 1, MOST_OF_PLAN) < 0 ||
        in_range(pool_size, 1, MOST_OF_PLAN) < 0)
        return -1;
    self->closing_layers = closing;
    self->layers = layers;
    self->serial.data_parallel = data_parallel;
    self->serial.verify_tokens = verify_tokens;
    self->pools = Py_NewRef(pools);
    self->pool_size = pool_size;
    self->thousandths = thousandths;
    self->fine_tokens = fine_tokens;
    self->octave_bits = octave_bits;
    if (serial_read(&self->serial, ways) < 0 || read_cuts(self, cuts) < 0 || read_rounds(self, rounds) < 0)
        return -1;
    if (rows_read(rows, &self->rows, &self->n_rows) < 0 || rows_read(once, &self->once, &self->n_once) < 0)
        return -1;
    self->most = ((fs_t)1 << 61) / (4 * (self->visits + 1) * self->most_parts);
    return 0;
}

static PyObject *mixed_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *self = type->tp_alloc(type, 0);
    if (self && read_plan((MixedSteps *)self, args, keywords) < 0)
        Py_CLEAR(self);
    return self;
}

static void mixed_dealloc(MixedSteps *self)
{
    PyTypeObject *type = Py_TYPE(self);
    serial_free(&self->serial);
    PyMem_Free(self->rounds);
    PyMem_Free(self->cuts);
    rows_free(self->rows, self->n_rows);
    rows_free(self->once, self->n_once);
    Py_XDECREF(self->pools);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* evaluate.once_fs */
static int once_fs(const MixedSteps *self, const Shape *whole, fs_t *into)
{
    fs_t every[KINDS], busiest[KINDS], time;
    *into = 0;
    counts_of(&self->serial, whole, every, busiest);
    for (Py_ssize_t r = 0; r < self->n_once; r++)
        if (fs_at_count(self->once[r].times, busiest[self->once[r].kind], &time) < 0 ||
            narrow((wide_t)*into + time, into) < 0)
            return -1;
    return 0;
}

/* Of the fields of StepShape. */
static int read_shape(PyObject *fields, Shape *shape)
{
    if (!PyTuple_Check(fields) || PyTuple_GET_SIZE(fields) < 9) {
        PyErr_SetString(PyExc_TypeError, "the fields of StepShape");
        return -1;
    }
    fs_t *first[] = {&shape->decodes, &shape->context, &shape->prefill,
                     &shape->chunks,  &shape->outputs, &shape->busiest};
    for (int i = 0; i < 6; i++)
        if (as_count(PyTuple_GET_ITEM(fields, i + 1), MOST_COUNT, first[i]) < 0)
            return -1;
    return as_count(PyTuple_GET_ITEM(fields, 8), (fs_t)1 << 62, &shape->prefill_fs);
}

/* Python's modulo, which is never below 0. */
static int as_outcome(const MixedSteps *self, PyObject *number, fs_t *into)
{
    if (as_fs(number, into) < 0)
        return -1;
    *into = (*into % self->pool_size + self->pool_size) % self->pool_size;
    return 0;
}

PyDoc_STRVAR(step_doc, "step_fs(shape, outcome): time of one step, fs; None: beyond 64 bit.\n\n"
                       "Args:\n    shape: the fields of `StepShape`.\n"
                       "    outcome: which its first micro-batch takes, modulo the pool's size.");

static PyObject *mixed_step(MixedSteps *self, PyObject *const *args, Py_ssize_t n_args)
{
    Shape whole, parts[MOST_PARTS];
    Stages stages[MOST_PARTS];
    fs_t outcome, once, time = 0, layer_fs[MOST_PARTS] = {0};
    if (n_args != 2) {
        PyErr_SetString(PyExc_TypeError, "step_fs(shape, outcome)");
        return NULL;
    }
    if (read_shape(args[0], &whole) < 0 || as_outcome(self, args[1], &outcome) < 0 || once_fs(self, &whole, &once) < 0)
        return or_none(NULL);
    Py_ssize_t count = split(self, &whole, parts);
    for (Py_ssize_t p = 0; p < count; p++) {
        if (serial_layers_fs(&self->serial, parts + p, layer_fs + p) < 0)
            return or_none(NULL);
        layer_fs[p] /= self->layers;
    }
    if (stages_read(self, parts, count, stages) < 0)
        return or_none(NULL);
    int failed = stages_fs(self, stages, count, outcome, layer_fs, &time);
    stages_release(stages, count);
    return or_none(failed ? NULL : from_wide((wide_t)once + time));
}

/* Of so many decode steps, when each ends. */
static PyObject *ends_of(const MixedSteps *self, Stages *stages, Py_ssize_t count, fs_t outcome, fs_t steps, fs_t once,
                         const fs_t *first, const fs_t *growth)
{
    fs_t layer_fs[MOST_PARTS] = {0}, time = 0, end = 0;
    PyObject *ends = PyList_New((Py_ssize_t)steps), *number;
    for (fs_t after = 0; ends && after < steps; after++) {
        int failed = 0;
        for (Py_ssize_t p = 0; !failed && p < count; p++) {
            failed = narrow(first[p] + (wide_t)growth[p] * after, layer_fs + p);
            layer_fs[p] /= self->layers;
        }
        if (failed || stages_fs(self, stages, count, outcome + after * self->most_parts, layer_fs, &time) < 0 ||
            narrow((wide_t)end + once + time, &end) < 0 || !(number = PyLong_FromLongLong(end)))
            Py_CLEAR(ends);
        else
            PyList_SET_ITEM(ends, (Py_ssize_t)after, number);
    }
    return ends;
}

PyDoc_STRVAR(ends_doc,
             "ends_fs(requests, context, outcome, most, once_fs): when decode steps end that follow each other;\n"
             "None: beyond 64 bit.\n\n"
             "Args:\n    requests: that decode.\n    context: tokens that they attend to in the first step.\n"
             "    outcome: which its first micro-batch takes, modulo the pool's size.\n"
             "    most: steps; fewer come back where attention does not grow evenly in all.\n"
             "    once_fs: what each takes before its micro-batches begin.");

static PyObject *mixed_ends(MixedSteps *self, PyObject *const *args, Py_ssize_t n_args)
{
    fs_t requests, context, outcome, steps, once, first[MOST_PARTS], growth[MOST_PARTS];
    Shape parts[MOST_PARTS];
    Stages stages[MOST_PARTS];
    if (n_args != 5) {
        PyErr_SetString(PyExc_TypeError, "ends_fs(requests, context, outcome, most, once_fs)");
        return NULL;
    }
    if (as_count(args[0], MOST_COUNT, &requests) < 0 || as_count(args[1], MOST_COUNT, &context) < 0 ||
        as_outcome(self, args[2], &outcome) < 0 || as_count(args[3], MOST_OF_PLAN, &steps) < 0 ||
        as_fs(args[4], &once) < 0)
        return or_none(NULL);
    if (requests < 1) {
        PyErr_SetString(PyExc_ValueError, "nobody decodes");
        return NULL;
    }
    Py_ssize_t count = split_decodes(self, requests, context, parts);
    for (Py_ssize_t p = 0; p < count; p++)
        if (serial_decode_span(&self->serial, parts[p].decodes, parts[p].context, first + p, growth + p, &steps) < 0)
            return or_none(NULL);
    if (stages_read(self, parts, count, stages) < 0)
        return or_none(NULL);
    PyObject *ends = ends_of(self, stages, count, outcome, steps, once, first, growth);
    stages_release(stages, count);
    return or_none(ends);
}

static PyMethodDef mixed_methods[] = {
    {"step_fs", (PyCFunction)(void (*)(void))mixed_step, METH_FASTCALL, step_doc},
    {"ends_fs", (PyCFunction)(void (*)(void))mixed_ends, METH_FASTCALL, ends_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mixed_slots[] = {
    {Py_tp_doc, "Times of steps of a plan with micro-batches, one by one."},
    {Py_tp_new, mixed_new},
    {Py_tp_dealloc, mixed_dealloc},
    {Py_tp_methods, mixed_methods},
    {0, NULL},
};

PyType_Spec mixed_steps_spec = {"pimserve.device_models.compiled._steps.MixedSteps", sizeof(MixedSteps), 0,
                                Py_TPFLAGS_DEFAULT, mixed_slots};
