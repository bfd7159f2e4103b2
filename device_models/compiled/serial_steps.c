/* What ReplicaCosts.prompt_step works out, and the spans of ReplicaCosts.decode_span. */

#include "steps.h"

typedef struct {
    PyObject_HEAD Serial serial;
    PyObject *chunks;                                /* what attention of chunks costs */
    PyObject *tokens, *outputs, *requests, *decodes; /* times of row terms, by what they count */
} SerialSteps;

static PyObject *serial_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"ways",    "data_parallel", "verify_tokens", "chunks", "tokens",
                            "outputs", "requests",      "decodes",       NULL};
    PyObject *ways, *chunks, *tokens, *outputs, *requests, *decodes;
    long long data_parallel, verify_tokens;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!LLOOOOO", names, &PyTuple_Type, &ways, &data_parallel,
                                     &verify_tokens, &chunks, &tokens, &outputs, &requests, &decodes))
        return NULL;
    SerialSteps *self = (SerialSteps *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->serial.data_parallel = data_parallel;
    self->serial.verify_tokens = verify_tokens;
    self->chunks = Py_NewRef(chunks);
    self->tokens = Py_NewRef(tokens);
    self->outputs = Py_NewRef(outputs);
    self->requests = requests == Py_None ? NULL : Py_NewRef(requests);
    self->decodes = Py_NewRef(decodes);
    if (serial_read(&self->serial, ways) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void serial_dealloc(SerialSteps *self)
{
    PyTypeObject *type = Py_TYPE(self);
    serial_free(&self->serial);
    Py_XDECREF(self->chunks);
    Py_XDECREF(self->tokens);
    Py_XDECREF(self->outputs);
    Py_XDECREF(self->requests);
    Py_XDECREF(self->decodes);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

typedef struct {
    fs_t tokens, time_fs, dram_pj, compute_pj;
} Chunk;

/* A sum that stays within 64 bit. */
static int add_to(fs_t *sum, fs_t more)
{
    return __builtin_add_overflow(*sum, more, sum) ? too_great() : 0;
}

/* CostPlan.chunk_cost of all chunks together. */
static int add_chunks(const SerialSteps *self, PyObject *chunks, Chunk *sum)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(chunks); i++) {
        PyObject *chunk = Py_NewRef(PyList_GET_ITEM(chunks, i)); /* for what costs it may change the list */
        PyObject *cost = PyObject_GetItem(self->chunks, chunk);
        Chunk one = {0};
        if (!cost) {
            Py_DECREF(chunk);
            return -1;
        }
        int failed =
            !PyTuple_Check(chunk) || !PyTuple_GET_SIZE(chunk) || !PyTuple_Check(cost) || PyTuple_GET_SIZE(cost) != 3;
        if (failed)
            PyErr_SetString(PyExc_TypeError,
                            "chunks are tuples of tokens and more, and their costs are of three numbers");
        failed = failed || as_count(PyTuple_GET_ITEM(chunk, 0), MOST_COUNT, &one.tokens) < 0 ||
                 as_fs(PyTuple_GET_ITEM(cost, 0), &one.time_fs) < 0 ||
                 as_fs(PyTuple_GET_ITEM(cost, 1), &one.dram_pj) < 0 ||
                 as_fs(PyTuple_GET_ITEM(cost, 2), &one.compute_pj) < 0;
        Py_DECREF(cost);
        Py_DECREF(chunk);
        if (failed || add_to(&sum->tokens, one.tokens) < 0 || add_to(&sum->time_fs, one.time_fs) < 0 ||
            add_to(&sum->dram_pj, one.dram_pj) < 0 || add_to(&sum->compute_pj, one.compute_pj) < 0)
            return -1;
    }
    return 0;
}

/* evaluate.step_of: the fields of StepShape, and of these what times follow from. */
static PyObject *shape_of(const SerialSteps *self, PyObject *const *args, Py_ssize_t n_args, Shape *shape)
{
    if (n_args != 4 || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "decodes, context, a list of chunks, and outputs");
        return NULL;
    }
    PyObject *decodes = args[0], *context = args[1], *outputs = args[3];
    Py_ssize_t n = PyList_GET_SIZE(args[2]);
    Chunk sum = {0};
    if (as_count(decodes, MOST_COUNT, &shape->decodes) < 0 || as_count(context, MOST_COUNT, &shape->context) < 0 ||
        as_count(outputs, MOST_COUNT, &shape->outputs) < 0 || add_chunks(self, args[2], &sum) < 0)
        return NULL;
    if (n > 1 && self->serial.data_parallel > 1) { /* they are dealt out */
        PyErr_SetString(PyExc_OverflowError, "several chunks and data-parallel groups");
        return NULL;
    }
    shape->prefill = sum.tokens;
    shape->chunks = n;
    shape->busiest = self->serial.verify_tokens * ceil_div(shape->decodes, self->serial.data_parallel) + sum.tokens;
    shape->prefill_fs = sum.time_fs;
    return Py_BuildValue("(iOOLnOLiLLLOOnO)", 1, decodes, context, (long long)sum.tokens, n, outputs,
                         (long long)shape->busiest, 0, (long long)sum.time_fs, (long long)sum.dram_pj,
                         (long long)sum.compute_pj, decodes, context, n, outputs);
}

PyDoc_STRVAR(shape_doc,
             "shape(decodes, context, chunks, outputs): as `evaluate.step_of`; None: beyond 64 bit, or several\n"
             "data-parallel groups share several chunks.");

static PyObject *serial_shape(SerialSteps *self, PyObject *const *args, Py_ssize_t n_args)
{
    Shape shape;
    return or_none(shape_of(self, args, n_args, &shape));
}

/* Time of the row terms of a step with prompts. */
static int rows_fs(const SerialSteps *self, const Shape *shape, wide_t *time)
{
    fs_t here;
    if (fs_at_count(self->tokens, shape->busiest, &here) < 0)
        return -1;
    *time += here;
    if (fs_at_count(self->outputs, sampled(&self->serial, shape), &here) < 0)
        return -1;
    *time += here;
    if (!self->requests)
        return 0;
    PyObject *key = Py_BuildValue("(LL)", (long long)shape->decodes, (long long)shape->chunks);
    PyObject *found = key ? PyObject_GetItem(self->requests, key) : NULL;
    int failed = !found || as_fs(found, &here) < 0;
    Py_XDECREF(key);
    Py_XDECREF(found);
    *time += failed ? 0 : here;
    return failed ? -1 : 0;
}

PyDoc_STRVAR(prompt_doc,
             "prompt_step(decodes, context, chunks, outputs): the same, and its time but for routed experts, fs.");

static PyObject *serial_prompt(SerialSteps *self, PyObject *const *args, Py_ssize_t n_args)
{
    Shape shape;
    PyObject *fields = shape_of(self, args, n_args, &shape), *number, *both = NULL;
    fs_t attention;
    wide_t time = 0;
    if (!fields)
        return or_none(NULL);
    if (rows_fs(self, &shape, &time) == 0 && serial_layers_fs(&self->serial, &shape, &attention) == 0 &&
        (number = from_wide(time + attention))) {
        both = PyTuple_Pack(2, fields, number);
        Py_DECREF(number);
    }
    Py_DECREF(fields);
    return or_none(both);
}

PyDoc_STRVAR(span_doc,
             "decode_span(decodes, context, most, experts, at): as `ReplicaCosts.decode_span`; None: beyond 64 bit.\n\n"
             "`experts`, `at`: as in `DecodeSpan`; a list, or empty.");

static PyObject *serial_span(SerialSteps *self, PyObject *const *args, Py_ssize_t n_args)
{
    fs_t decodes, context, steps, at, first, growth, rows;
    if (n_args != 5 || !PySequence_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "decodes, context, most, a sequence of experts, at");
        return NULL;
    }
    if (as_count(args[0], MOST_COUNT, &decodes) < 0 || as_count(args[1], MOST_COUNT, &context) < 0 ||
        as_count(args[2], MOST_OF_PLAN, &steps) < 0 || as_fs(args[4], &at) < 0)
        return or_none(NULL);
    if (decodes < 1) {
        PyErr_SetString(PyExc_ValueError, "nobody decodes");
        return NULL;
    }
    fs_t share = ceil_div(decodes, self->serial.data_parallel);
    if (serial_decode_span(&self->serial, decodes, context, &first, &growth, &steps) < 0 ||
        fs_at_count(self->decodes, share, &rows) < 0 || narrow((wide_t)first + rows, &first) < 0)
        return or_none(NULL);
    return or_none(span_new(steps, self->serial.verify_tokens * share, first, growth, args[3], at));
}

static PyMethodDef serial_methods[] = {
    {"shape", (PyCFunction)(void (*)(void))serial_shape, METH_FASTCALL, shape_doc},
    {"prompt_step", (PyCFunction)(void (*)(void))serial_prompt, METH_FASTCALL, prompt_doc},
    {"decode_span", (PyCFunction)(void (*)(void))serial_span, METH_FASTCALL, span_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot serial_slots[] = {
    {Py_tp_doc, "Times of steps of devices that run operators one after the other."},
    {Py_tp_new, serial_new},
    {Py_tp_dealloc, serial_dealloc},
    {Py_tp_methods, serial_methods},
    {0, NULL},
};

PyType_Spec serial_steps_spec = {"pimserve.device_models.compiled._steps.SerialSteps", sizeof(SerialSteps), 0,
                                 Py_TPFLAGS_DEFAULT, serial_slots};
