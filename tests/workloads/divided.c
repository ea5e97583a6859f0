__attribute__((cold, noinline)) void rare(int n) { __asm__ volatile("" ::"r"(n)); }
__attribute__((noinline)) int divided(int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) {
        switch (i % 5) {
        case 0: sum += i; if (sum == 77) { rare(1); sum ^= 3; rare(sum); } break;
        case 1: sum -= i; if (sum == 78) { rare(2); sum ^= 5; rare(sum + 1); } break;
        case 2: sum *= i; if (sum == 79) { rare(3); sum ^= 9; rare(sum + 2); } break;
        default: sum ^= i; if (sum == 80) { rare(4); sum ^= 11; rare(sum + 3); }
        }
    }
    return sum;
}
int main(int count, char **arguments) { (void)arguments; return divided(count); }
