// An answer that is to be a form: whether it is one, and how it is drawn. The answer is a stranger's
// text: it is compared with the schema, and every word of it is shown as text.

/** The form that *text* is by *schema*, or null. */
export function readForm(text, schema) {
    try {
        const form = JSON.parse(text);
        return fits(form, schema) ? form : null;
    } catch {
        return null;
    }
}

/** A labelled field for each property of *schema*. */
export function drawForm(form, schema) {
    const list = document.createElement('dl');
    for (const name of Object.keys(schema.properties)) {
        const label = document.createElement('dt');
        const field = document.createElement('dd');
        label.textContent = name[0].toUpperCase() + name.slice(1);
        // a city begins with a space, because that is easier to write (extra 7)
        field.textContent = [form[name] ?? ''].flat().join(', ').trim() || 'not said';
        list.append(label, field);
    }
    return list;
}

/** Whether *value* is as *schema* says, in the words that data/forms.schema.json uses. */
function fits(value, schema) {
    if (schema.anyOf) return schema.anyOf.some((one) => fits(value, one));
    if (schema.enum) return schema.enum.includes(value);
    const within = (size, least = 0, most = Infinity) => least <= size && size <= most;
    switch (schema.type) {
        case 'null':
            return value === null;
        case 'integer':
            return Number.isInteger(value) && within(value, schema.minimum, schema.maximum);
        case 'string':
            return typeof value === 'string' &&
                within([...value].length, schema.minLength, schema.maxLength);
        case 'array':
            return Array.isArray(value) && within(value.length, 0, schema.maxItems) &&
                value.every((one) => fits(one, schema.items));
        case 'object':
            return value !== null && typeof value === 'object' && !Array.isArray(value) &&
                Object.keys(value).sort().join() === Object.keys(schema.properties).sort().join() &&
                Object.entries(schema.properties).every(([name, one]) => fits(value[name], one));
        default:
            return false;
    }
}
