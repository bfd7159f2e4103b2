/* micro_batches.MicroBatches: how a step is cut. */

#include "mixed.h"

Py_ssize_t parts_of(const MixedSteps *mixed, fs_t tokens)
{
    Py_ssize_t number = 0;
    for (Py_ssize_t i = 0; i < mixed->n_cuts && mixed->cuts[i].from_tokens <= tokens; i++)
        number = (Py_ssize_t)mixed->cuts[i].number;
    return number;
}

/* MicroBatches.split. Some may be empty where others have prompts alone: they take no time, and hold nobody up, as the
   next one waits for all that they wait for. */
Py_ssize_t split(const MixedSteps *mixed, const Shape *whole, Shape *parts)
{
    fs_t requests = whole->decodes, prefill = whole->prefill, verify = mixed->serial.verify_tokens;
    fs_t groups = mixed->serial.data_parallel;
    Py_ssize_t n = parts_of(mixed, verify * requests + prefill);
    fs_t mean = requests ? whole->context / requests : whole->context, more = whole->context - mean * requests;
    fs_t beside = whole->busiest - verify * ceil_div(requests, groups); /* prompts' of the busiest group */
    fs_t completed = whole->outputs - requests, with_prompts = prefill < n ? prefill : n;
    fs_t layer_fs = whole->prefill_fs / mixed->layers;
    for (Py_ssize_t place = 0; place < n; place++) {
        Shape *part = parts + place;
        fs_t shorter = n - 1 - place;
        part->decodes = (requests + shorter) / n;
        part->context = mean * part->decodes + (more + shorter) / n;
        part->prefill = (prefill + place) / n;
        part->chunks = (whole->chunks + place) / n;
        part->outputs = part->decodes + (completed + place) / n;
        part->busiest = verify * ceil_div(part->decodes, groups) + (beside + place) / n;
        part->prefill_fs = 0;
        if (shorter < with_prompts)
            part->prefill_fs = mixed->layers * ((layer_fs + with_prompts - 1 - shorter) / with_prompts);
    }
    return n;
}

/* The same of a step that only decodes: MicroBatches.sizes. */
Py_ssize_t split_decodes(const MixedSteps *mixed, fs_t requests, fs_t context, Shape *parts)
{
    fs_t verify = mixed->serial.verify_tokens, mean = context / requests, more = context - mean * requests;
    Py_ssize_t n = parts_of(mixed, verify * requests), count = n < requests ? n : (Py_ssize_t)requests;
    for (Py_ssize_t place = 0; place < count; place++) {
        fs_t shorter = n - 1 - place, size = (requests + shorter) / n;
        fs_t busiest = verify * ceil_div(size, mixed->serial.data_parallel);
        parts[place] = (Shape){size, size * mean + (more + shorter) / n, 0, 0, size, busiest, 0};
    }
    return count;
}
