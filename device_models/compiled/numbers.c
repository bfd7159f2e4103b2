/* Python's whole numbers in 64 bit, and times that are kept by count. */

#include "steps.h"

int too_great(void)
{
    PyErr_SetString(PyExc_OverflowError, "below 0, or beyond 64 bit");
    return -1;
}

int narrow(wide_t value, fs_t *into)
{
    if (value < 0 || value > ((wide_t)1 << 62))
        return too_great();
    *into = (fs_t)value;
    return 0;
}

int as_fs(PyObject *number, fs_t *into)
{
    *into = PyLong_AsLongLong(number);
    return *into == -1 && PyErr_Occurred() ? -1 : 0;
}

int in_range(fs_t value, fs_t least, fs_t most)
{
    return value < least || value > most ? too_great() : 0;
}

int as_count(PyObject *number, fs_t most, fs_t *into)
{
    return as_fs(number, into) < 0 ? -1 : in_range(*into, 0, most);
}

/* PyArg_ParseTuple takes anything else for a fault of the C. */
int is_tuple(PyObject *given)
{
    if (PyTuple_Check(given))
        return 1;
    PyErr_SetString(PyExc_TypeError, "what a plan consists of are tuples");
    return 0;
}

PyObject *from_wide(wide_t value)
{
    if (value <= INT64_MAX)
        return PyLong_FromLongLong((long long)value);
    PyObject *high = PyLong_FromLongLong((long long)(value >> 62)), *low = NULL, *bits = NULL, *shifted = NULL,
             *sum = NULL;
    low = PyLong_FromLongLong((long long)(value & (((wide_t)1 << 62) - 1)));
    bits = PyLong_FromLong(62);
    if (high && low && bits && (shifted = PyNumber_Lshift(high, bits)))
        sum = PyNumber_Add(shifted, low);
    Py_XDECREF(high);
    Py_XDECREF(low);
    Py_XDECREF(bits);
    Py_XDECREF(shifted);
    return sum;
}

/* None in place of an OverflowError: whoever asks has another way. */
PyObject *or_none(PyObject *found)
{
    if (found || !PyErr_ExceptionMatches(PyExc_OverflowError))
        return found;
    PyErr_Clear();
    Py_RETURN_NONE;
}

PyObject *at_count(PyObject *mapping, fs_t count)
{
    PyObject *key = PyLong_FromLongLong(count);
    if (!key)
        return NULL;
    PyObject *found = PyObject_GetItem(mapping, key);
    Py_DECREF(key);
    return found;
}

int fs_at_count(PyObject *mapping, fs_t count, fs_t *into)
{
    PyObject *found = at_count(mapping, count);
    if (!found)
        return -1;
    int failed = as_fs(found, into);
    Py_DECREF(found);
    return failed;
}

/* evaluate.counts_of: what row terms of each kind count, of all data-parallel groups and of the slowest one. */
void counts_of(const Serial *serial, const Shape *shape, fs_t every[KINDS], fs_t busiest[KINDS])
{
    fs_t groups = serial->data_parallel, outputs = sampled(serial, shape),
         tokens = serial->verify_tokens * shape->decodes + shape->prefill;
    fs_t decodes = ceil_div(shape->decodes, groups), prompts = ceil_div(shape->chunks, groups);
    fs_t of_all[KINDS] = {tokens, outputs,       shape->decodes, shape->chunks, shape->decodes + shape->chunks,
                          tokens, shape->decodes};
    fs_t of_one[KINDS] = {shape->busiest, ceil_div(outputs, groups), decodes, prompts, decodes + prompts, tokens,
                          shape->decodes};
    memcpy(every, of_all, sizeof of_all);
    memcpy(busiest, of_one, sizeof of_one);
}

int rows_read(PyObject *given, Rows **into, Py_ssize_t *count)
{
    Py_ssize_t n = PyTuple_GET_SIZE(given);
    *into = PyMem_Calloc((size_t)n + 1, sizeof(Rows));
    if (!*into) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        Rows *rows = *into + i;
        PyObject *times;
        if (!is_tuple(PyTuple_GET_ITEM(given, i)) ||
            !PyArg_ParseTuple(PyTuple_GET_ITEM(given, i), "ipO", &rows->kind, &rows->busiest, &times))
            return -1;
        if (rows->kind < 0 || rows->kind >= KINDS) {
            PyErr_SetString(PyExc_ValueError, "no such kind of rows");
            return -1;
        }
        rows->times = Py_NewRef(times);
        *count = i + 1;
    }
    return 0;
}

void rows_free(Rows *rows, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        Py_DECREF(rows[i].times);
    PyMem_Free(rows);
}
