/**
 * Spares QEMU the measuring of its key derivation. Before it makes a LUKS key slot, it derives keys for a second of processor time or
 * two, whatever time it is to take. A library that is loaded before it tells it that each of these has taken a second: so
 * the first one is enough, and the number of iterations is QEMU's least, 1000. The image is made by QEMU all the same.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const SOURCE = `
#include <string.h>
#include <sys/resource.h>
int getrusage(int who, struct rusage *usage)
{
  static __thread long seconds;
  memset(usage, 0, sizeof *usage);
  usage->ru_utime.tv_sec = ++seconds;
  return 0;
}
`

let environment: NodeJS.ProcessEnv | undefined

/** The environment in which qemu-img measures nothing; the usual one where there is no C compiler. */
export function quickClock(): NodeJS.ProcessEnv {
  environment ??= compiled()
  return environment
}

function compiled(): NodeJS.ProcessEnv {
  const folder = mkdtempSync(join(tmpdir(), 'vimgfs-clock-'))
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  const library = join(folder, 'clock.so')
  try {
    const args = ['-shared', '-fPIC', '-o', library, '-x', 'c', '-']
    execFileSync('gcc', args, { input: SOURCE, stdio: ['pipe', 'ignore', 'ignore'] })
    return { LD_PRELOAD: library }
  } catch {
    return {}
  }
}
