/* evaluate.DecodeSpan: time of decode steps that follow each other, in closed form. */

#include "steps.h"
#include <structmember.h>

typedef struct {
    PyObject_HEAD fs_t steps, busiest_tokens, first_fs, growth_fs, at;
    PyObject *experts; /* a list of sums, NULL where there are none */
} Span;

PyTypeObject *span_type;

static int duration_of(const Span *self, fs_t steps, fs_t *into)
{
    fs_t until = 0, since = 0;
    if (steps < 0 || steps > self->steps || (self->experts && self->at >= PyList_GET_SIZE(self->experts) - steps)) {
        PyErr_Format(PyExc_IndexError, "the span has %lld steps", (long long)self->steps);
        return -1;
    }
    if (self->experts && (as_fs(PyList_GET_ITEM(self->experts, self->at + steps), &until) < 0 ||
                          as_fs(PyList_GET_ITEM(self->experts, self->at), &since) < 0))
        return -1;
    wide_t growth = (wide_t)self->growth_fs * ((wide_t)steps * (steps - 1) / 2);
    return narrow((wide_t)steps * self->first_fs + growth + until - since, into);
}

PyObject *span_new(fs_t steps, fs_t busiest_tokens, fs_t first_fs, fs_t growth_fs, PyObject *experts, fs_t at)
{
    fs_t whole_fs;
    int any = PyList_Check(experts) && PyList_GET_SIZE(experts);
    if (any && (at < 0 || at >= PyList_GET_SIZE(experts) - steps)) {
        PyErr_SetString(PyExc_IndexError, "the span leaves the sequence of experts");
        return NULL;
    }
    if (!any && PySequence_Size(experts)) {
        PyErr_SetString(PyExc_TypeError, "experts are a list, or none");
        return NULL;
    }
    Span *self = (Span *)span_type->tp_alloc(span_type, 0);
    if (!self)
        return NULL;
    self->steps = steps;
    self->busiest_tokens = busiest_tokens;
    self->first_fs = first_fs;
    self->growth_fs = growth_fs;
    self->at = at;
    self->experts = any ? Py_NewRef(experts) : NULL;
    if (duration_of(self, steps, &whole_fs) < 0) /* so that those of fewer steps fit, too */
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void span_dealloc(Span *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->experts);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(duration_doc, "duration_fs(steps): time of the first so many steps.");

static PyObject *span_duration(Span *self, PyObject *steps)
{
    fs_t n, time;
    if (as_fs(steps, &n) < 0 || duration_of(self, n, &time) < 0)
        return NULL;
    return PyLong_FromLongLong(time);
}

PyDoc_STRVAR(reaching_doc,
             "first_reaching(limit_fs, most, duration_fs): (n, time of n steps) for the smallest n of at most\n"
             "`most` whose time is at least `limit_fs`; that of `most` is `duration_fs`, which is more.");

static PyObject *span_reaching(Span *self, PyObject *const *args, Py_ssize_t n_args)
{
    fs_t limit, most, least = 1, time = 0;
    if (n_args != 3) {
        PyErr_SetString(PyExc_TypeError, "limit_fs, most, duration_fs");
        return NULL;
    }
    if (as_fs(args[0], &limit) < 0 || as_fs(args[1], &most) < 0)
        return NULL;
    while (least < most) {
        fs_t middle = least + (most - least) / 2;
        if (duration_of(self, middle, &time) < 0)
            return NULL;
        if (time >= limit)
            most = middle;
        else
            least = middle + 1;
    }
    if (duration_of(self, most, &time) < 0)
        return NULL;
    return Py_BuildValue("(LL)", (long long)most, (long long)time);
}

static PyMemberDef span_members[] = {
    {"steps", T_LONGLONG, offsetof(Span, steps), READONLY, "for which that holds"},
    {"busiest_tokens", T_LONGLONG, offsetof(Span, busiest_tokens), READONLY,
     "of each step, in the slowest data-parallel group"},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef span_methods[] = {
    {"duration_fs", (PyCFunction)span_duration, METH_O, duration_doc},
    {"first_reaching", (PyCFunction)(void (*)(void))span_reaching, METH_FASTCALL, reaching_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot span_slots[] = {
    {Py_tp_doc, "Time of decode steps that follow each other, in closed form."},
    {Py_tp_dealloc, span_dealloc},
    {Py_tp_members, span_members},
    {Py_tp_methods, span_methods},
    {0, NULL},
};

PyType_Spec span_spec = {"pimserve.device_models.compiled._steps.Span", sizeof(Span), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, span_slots};
