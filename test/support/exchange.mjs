/**
 * exchange.mjs A B: exchanges two names again and again (renameat2(2), RENAME_EXCHANGE), until it is killed or the process
 * that started it has ended.
 */
import koffi from 'koffi'

const AT_FDCWD = -100
const RENAME_EXCHANGE = 2
const renameat2 = koffi
  .load('libc.so.6')
  .func('int renameat2(int from, const char *a, int to, const char *b, unsigned int flags)')

const [a, b] = process.argv.slice(2)
const parent = process.ppid
if (renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) !== 0) throw new Error('it failed')
process.stdout.write('ready\n')
while (process.ppid === parent) {
  for (let i = 0; i < 1000; i++) renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
}
