/* A qemu plugin that counts the instructions an emulated AArch64 program runs, by class.
 *
 * Every block of code is classified once, when qemu translates it; running it adds constants to counters, so that
 * counting costs little. Two system calls of the program write a line of totals to the file named by out=PATH:
 *
 *     m TOTAL DOT MATRIX WIDENING FMLA    getppid, which the program calls to mark a place in its run
 *     c TOTAL DOT MATRIX WIDENING FMLA    clock_gettime, which ONNX Runtime's profiler reads around every node
 *
 * The program must be single-threaded where it is counted: all threads share the counters, which are not atomic.
 * Calls of other threads than the first are not written.
 *
 * Only the few functions that are used are declared, as plugin API version 1 (qemu 6 to 8) has them, so that no
 * header of qemu is needed. Encodings: Arm Architecture Reference Manual for A-profile, DDI 0487, chapter C4.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define GETPPID 173
#define CLOCK_GETTIME 113
#define INLINE_ADD_U64 0

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

typedef void (*translated)(plugin_id, struct qemu_plugin_tb *);
typedef void (*system_call)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                            uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, system_call);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *counter, uint64_t amount);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

enum { DOT, MATRIX, WIDENING, FMLA, OTHER, CLASSES };

/* An instruction belongs to the class of the first row with (word & mask) == value. */
static const struct {
    uint32_t mask, value;
    int class;
} ENCODINGS[] = {
    {0x9FE0FC00, 0x0E809400, DOT},      /* SDOT, UDOT, vector */
    {0xBFE0FC00, 0x0E809C00, DOT},      /* USDOT, vector */
    {0x9FC0F400, 0x0F80E000, DOT},      /* SDOT, UDOT, by element */
    {0xBF40F400, 0x0F00F000, DOT},      /* SUDOT, USDOT, by element */
    {0xDFE0FC00, 0x4E80A400, MATRIX},   /* SMMLA, UMMLA */
    {0xFFE0FC00, 0x4E80AC00, MATRIX},   /* USMMLA */
    {0x9F20FC00, 0x0E20C000, WIDENING}, /* SMULL, UMULL, vector */
    {0x9F20FC00, 0x0E208000, WIDENING}, /* SMLAL, UMLAL, vector */
    {0x9F20FC00, 0x0E20A000, WIDENING}, /* SMLSL, UMLSL, vector */
    {0x9F00F400, 0x0F00A000, WIDENING}, /* SMULL, UMULL, by element */
    {0x9F00F400, 0x0F002000, WIDENING}, /* SMLAL, UMLAL, by element */
    {0x9F00F400, 0x0F006000, WIDENING}, /* SMLSL, UMLSL, by element */
    {0xBF20FC00, 0x0E20CC00, FMLA},     /* FMLA, FMLS, vector, single and double */
    {0xBF60FC00, 0x0E400C00, FMLA},     /* FMLA, FMLS, vector, half */
    {0xBF80B400, 0x0F801000, FMLA},     /* FMLA, FMLS, by element, single and double */
    {0xBFC0B400, 0x0F001000, FMLA},     /* FMLA, FMLS, by element, half */
};

static uint64_t counters[CLASSES];
static FILE *output;

static int class_of(uint32_t word)
{
    for (size_t row = 0; row < sizeof ENCODINGS / sizeof *ENCODINGS; row++)
        if ((word & ENCODINGS[row].mask) == ENCODINGS[row].value)
            return ENCODINGS[row].class;
    return OTHER;
}

static void on_translated(plugin_id id, struct qemu_plugin_tb *block)
{
    uint64_t found[CLASSES] = {0};
    (void)id;
    for (size_t index = 0; index < qemu_plugin_tb_n_insns(block); index++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, index)), sizeof word);
        found[class_of(word)]++;
    }
    for (int class = 0; class < CLASSES; class++)
        if (found[class])
            qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &counters[class], found[class]);
}

static void on_system_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                           uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    uint64_t total = 0;
    (void)id, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (cpu != 0 || (number != GETPPID && number != CLOCK_GETTIME))
        return;
    for (int class = 0; class < CLASSES; class++)
        total += counters[class];
    fprintf(output, "%c %llu %llu %llu %llu %llu\n", number == GETPPID ? 'm' : 'c', (unsigned long long)total,
            (unsigned long long)counters[DOT], (unsigned long long)counters[MATRIX],
            (unsigned long long)counters[WIDENING], (unsigned long long)counters[FMLA]);
    if (number == GETPPID)
        fflush(output);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
    (void)info;
    for (int index = 0; index < count; index++)
        if (!strncmp(arguments[index], "out=", 4))
            output = fopen(arguments[index] + 4, "w");
    if (!output)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
