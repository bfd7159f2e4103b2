/* Times of steps in machine integers: the same bits as Python's, which say what they mean. */

#include "steps.h"

#ifndef SOURCES /* a checksum of all files in C, by setup.py */
#define SOURCES 0
#endif

static PyObject *add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type && PyModule_AddObjectRef(module, name, type) < 0)
        Py_CLEAR(type);
    return type;
}

static int add_types(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "SOURCES", SOURCES) < 0)
        return -1;
    PyObject *mixed = add_type(module, &mixed_steps_spec, "MixedSteps");
    PyObject *serial = mixed ? add_type(module, &serial_steps_spec, "SerialSteps") : NULL;
    PyObject *span = serial ? add_type(module, &span_spec, "Span") : NULL;
    Py_XDECREF(mixed);
    Py_XDECREF(serial);
    span_type = (PyTypeObject *)span; /* kept, as spans are made of it */
    return span ? 0 : -1;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, add_types}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_steps", "Times of steps in machine integers.", 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__steps(void)
{
    return PyModuleDef_Init(&module);
}
