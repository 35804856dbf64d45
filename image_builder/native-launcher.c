/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel runs (binfmt_misc) for programs of another architecture while an image is built.
 *
 * It runs the native program of the same path where there is one, and QEMU otherwise; no file of the tree that is
 * being built is touched.  The folder NATIVE is mounted in the tree during the build (image_builder/emulation.py):
 *
 *   qemu              the emulator, linked statically
 *   loader            the native dynamic loader
 *   root/             programs and libraries of the same release, native
 *   programs/PATH     a file for each program that may run natively: options, one a line, that it is given first
 *   scripts/PATH/     where a program is an interpreter: a file for each script that it may run natively
 *
 * argv, by the kernel's flag P: this program, the path of the one to run, its argv[0], its arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOADER NATIVE "/loader"
#define EMULATOR NATIVE "/qemu"
#define LARGEST 1024 /* bytes of options */

static int exists(const char *folder, const char *program, const char *more)
{
    char path[2 * PATH_MAX];
    struct stat status;

    if (snprintf(path, sizeof path, "%s%s%s", folder, program, more) >= (int)sizeof path)
        return 0;
    return stat(path, &status) == 0;
}

/* Whether the program, if it is an interpreter, may run the script among its arguments natively. */
static int may_interpret(const char *program, char **arguments)
{
    char script[PATH_MAX];

    if (!exists(NATIVE "/scripts", program, ""))
        return 1;
    for (; *arguments; arguments++) {
        if ((strcmp(*arguments, "-m") == 0 || strcmp(*arguments, "-c") == 0) && arguments[1]) {
            if (snprintf(script, sizeof script, "/%s/%s", *arguments, arguments[1]) >= (int)sizeof script)
                return 0;
            return !strchr(arguments[1], '/') && exists(NATIVE "/scripts", program, script);
        }
        if (**arguments == '-')
            continue;
        return realpath(*arguments, script) && exists(NATIVE "/scripts", program, script);
    }
    return 0;
}

/* Run the native program; return only where there is none for this. */
static void run_native(int argc, char **argv)
{
    char real[PATH_MAX], merged[PATH_MAX], path[2 * PATH_MAX], options[LARGEST + 1];
    char *words[argc + LARGEST + 8], *program = real;
    int count = 0, file;
    ssize_t size;

    /* Who asks the other architecture's loader for something must get its answer. */
    if (getenv("LD_TRACE_LOADED_OBJECTS") || getenv("LD_PRELOAD") || !realpath(argv[1], real))
        return;
    /* A base system that is not merged into /usr yet. */
    if (strncmp(real, "/bin/", 5) == 0 || strncmp(real, "/sbin/", 6) == 0) {
        if (snprintf(merged, sizeof merged, "/usr%s", real) >= (int)sizeof merged)
            return;
        program = merged;
    }
    snprintf(path, sizeof path, NATIVE "/programs%s", program);
    if ((file = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return;
    size = read(file, options, LARGEST);
    close(file);
    if (size < 0 || !may_interpret(program, argv + 3))
        return;
    options[size] = 0;
    snprintf(path, sizeof path, NATIVE "/root%s", program);
    words[count++] = LOADER;
    words[count++] = "--library-path";
    words[count++] = LIBRARIES;
    words[count++] = "--argv0";
    words[count++] = argv[2];
    words[count++] = path;
    for (char *word = strtok(options, "\n"); word; word = strtok(NULL, "\n"))
        words[count++] = word;
    for (int i = 3; i <= argc; i++)
        words[count++] = argv[i];
    execv(LOADER, words);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "native-launcher: only the kernel runs this\n");
        return 127;
    }
    run_native(argc, argv);

    char *words[argc + 2];
    int count = 0;
    words[count++] = EMULATOR;
    words[count++] = "-0";
    words[count++] = argv[2];
    words[count++] = argv[1];
    for (int i = 3; i <= argc; i++)
        words[count++] = argv[i];
    execv(EMULATOR, words);
    fprintf(stderr, "native-launcher: can't run " EMULATOR " for %s: %s\n", argv[1], strerror(errno));
    return 126;
}
