/* serial.SerialTiming for one step. */

#include "steps.h"

static int read_way(Way *way, PyObject *given)
{
    PyObject *windowed;
    long long slope, per_request;
    if (!is_tuple(given) ||
        !PyArg_ParseTuple(given, "LO!Lp", &slope, &PyTuple_Type, &windowed, &per_request, &way->beside_prefill) ||
        in_range(slope, 0, INT64_MAX) < 0 || in_range(per_request, 0, INT64_MAX) < 0)
        return -1;
    way->slope = slope;
    way->per_request = per_request;
    way->n_windowed = PyTuple_GET_SIZE(windowed);
    way->windowed = PyMem_Calloc((size_t)way->n_windowed + 1, sizeof(Windowed));
    if (!way->windowed) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < way->n_windowed; i++) {
        long long window_slope, window;
        if (!is_tuple(PyTuple_GET_ITEM(windowed, i)) ||
            !PyArg_ParseTuple(PyTuple_GET_ITEM(windowed, i), "LL", &window_slope, &window) ||
            in_range(window_slope, 0, INT64_MAX) < 0 || in_range(window, 0, INT64_MAX) < 0)
            return -1;
        way->windowed[i] = (Windowed){window_slope, window};
    }
    return 0;
}

int serial_read(Serial *serial, PyObject *ways)
{
    serial->n_ways = PyTuple_GET_SIZE(ways);
    serial->ways = PyMem_Calloc((size_t)serial->n_ways + 1, sizeof(Way));
    if (!serial->ways) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < serial->n_ways; i++)
        if (read_way(serial->ways + i, PyTuple_GET_ITEM(ways, i)) < 0)
            return -1;
    if (!serial->n_ways || serial->data_parallel < 1 || serial->verify_tokens < 1) {
        PyErr_SetString(PyExc_ValueError, "a way to run attention, and a data-parallel group, are needed");
        return -1;
    }
    return serial->data_parallel > MOST_OF_PLAN || serial->verify_tokens > MOST_OF_PLAN ? too_great() : 0;
}

void serial_free(Serial *serial)
{
    for (Py_ssize_t i = 0; serial->ways && i < serial->n_ways; i++)
        PyMem_Free(serial->ways[i].windowed);
    PyMem_Free(serial->ways);
}

int serial_layers_fs(const Serial *serial, const Shape *shape, fs_t *into)
{
    fs_t requests = shape->decodes, context = shape->context, share = ceil_div(requests, serial->data_parallel);
    wide_t fastest = 0;
    for (Py_ssize_t i = 0; i < serial->n_ways; i++) {
        const Way *way = serial->ways + i;
        wide_t time = (wide_t)way->slope * context + (wide_t)way->per_request * share;
        for (Py_ssize_t j = 0; j < way->n_windowed; j++) {
            wide_t limit = (wide_t)way->windowed[j].window * requests;
            time += way->windowed[j].slope * (context < limit ? (wide_t)context : limit);
        }
        if (!way->beside_prefill)
            time += shape->prefill_fs;
        else if (time < shape->prefill_fs)
            time = shape->prefill_fs;
        if (!i || time < fastest)
            fastest = time;
    }
    return narrow(fastest, into);
}

/* SerialTiming._span */
static int span_of(const Serial *serial, const Way *way, fs_t requests, fs_t context, fs_t *first, fs_t *growth,
                   fs_t *steps)
{
    wide_t slope = way->slope, begin = (wide_t)way->per_request * ceil_div(requests, serial->data_parallel);
    for (Py_ssize_t i = 0; i < way->n_windowed; i++) {
        wide_t limit = (wide_t)way->windowed[i].window * requests;
        if (context >= limit) {
            begin += way->windowed[i].slope * limit;
            continue;
        }
        slope += way->windowed[i].slope;
        wide_t until = (limit - context) / requests + 1;
        *steps = *steps < until ? *steps : (fs_t)until;
    }
    return narrow(begin + slope * context, first) < 0 ? -1 : narrow(slope * requests, growth);
}

int serial_decode_span(const Serial *serial, fs_t requests, fs_t context, fs_t *first, fs_t *growth, fs_t *steps)
{
    if (span_of(serial, serial->ways, requests, context, first, growth, steps) < 0)
        return -1;
    for (Py_ssize_t i = 1; i < serial->n_ways; i++) {
        fs_t other, grows;
        if (span_of(serial, serial->ways + i, requests, context, &other, &grows, steps) < 0)
            return -1;
        fs_t lead = other - *first, lost = *growth - grows, until = *steps;
        if (lead >= 0) {
            until = lost <= 0 ? until : lead / lost + 1;
        } else {
            *first = other;
            *growth = grows;
            until = lost >= 0 ? until : (-lead - 1) / -lost + 1;
        }
        *steps = *steps < until ? *steps : until;
    }
    return 0;
}
