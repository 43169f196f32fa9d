/** exchange.mjs A B MILLISECONDS: exchanges two names again and again (renameat2(2), RENAME_EXCHANGE). */
import koffi from 'koffi'

const AT_FDCWD = -100
const RENAME_EXCHANGE = 2
const renameat2 = koffi
  .load('libc.so.6')
  .func('int renameat2(int from, const char *a, int to, const char *b, unsigned int flags)')

const [a, b, milliseconds] = process.argv.slice(2)
const until = performance.now() + Number(milliseconds)
if (renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) !== 0) throw new Error('it failed')
process.stdout.write('ready\n')
while (performance.now() < until) {
  for (let i = 0; i < 1000; i++) renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
}
